"""How many particles a budget pays for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Generator

from diffreward.random import Source
from diffreward.steering.methods import FKSteering

Budget = int | str
"""Denoiser rows per output, or seconds per call such as "30s"."""


def seconds_in(budget: Budget | None) -> float | None:
    """The seconds of a budget in seconds, None for one in rows or for none.

    Raises:
        ValueError: if it is neither a positive number of rows nor of seconds.
    """
    if budget is None or (isinstance(budget, int) and budget > 0):
        return None
    found = re.fullmatch(r"(\d+(?:\.\d*)?) ?s", str(budget))
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"got budget {budget!r}; give denoiser rows (400) or seconds ('30s')")
    return float(found[1])


def within_rows(method: FKSteering, rows: int, num_steps: int) -> FKSteering:
    """The same method with as many particles as the denoiser rows of one output pay for.

    Raises:
        ValueError: if they do not pay for one particle.
    """
    alone = replace(method, particles=1).cost(num_steps).network_rows
    if rows < alone:
        raise ValueError(
            f"a budget of {rows} rows does not pay for one particle, which takes {alone}: give a "
            "larger one, or fewer steps"
        )
    return replace(method, particles=rows // alone)


def within_seconds(method: FKSteering, left: float, alone: float) -> FKSteering:
    """The same method with as many particles as fit in the seconds left, at so many for one."""
    return replace(method, particles=max(1, int(left / alone)))


@contextmanager
def put_back(noise: Source) -> Iterator[None]:
    """Random numbers afterwards as before: of these generators, or of torch's own if None."""
    generators = [noise] if isinstance(noise, Generator) else list(noise or ())
    states = [generator.get_state() for generator in generators]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
