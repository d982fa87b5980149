"""Prompts: a list, or a text file with one per line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import TypeVar

import torch

from diffreward.random import stream

Item = TypeVar("Item")


def read_prompts(prompts: str | Path | Sequence[str]) -> list[str]:
    """The prompts themselves, or those of a text file: one per line, blank lines skipped.

    In a list, an empty prompt is one: of what asks for nothing in particular.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is no prompt.
    """
    if isinstance(prompts, str | Path):
        path = Path(prompts)
        if not path.is_file():
            raise FileNotFoundError(f"there is no prompts file {prompts}; it has a prompt per line")
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [prompt for line in lines if (prompt := line.strip())]
        where = f"the prompts file {prompts}"
    else:
        found, where = list(prompts), "the list of prompts"
    if not found:
        raise ValueError(f"{where} is empty; training and evaluation need at least one prompt")
    return found


def prompts_of_update(prompts: Sequence[Item], update: int, n: int, seed: int) -> list[Item]:
    """The n prompts of an update (1, 2, ...): epochs in shuffled order, one after the other.

    They may also be the numbers of prompts, or whatever else a run goes through.

    A function of its arguments, so that a resumed run sees the prompts that it would have seen.
    """
    first = (update - 1) * n

    def order() -> Iterator[Item]:
        for epoch in count(first // len(prompts)):
            generator = stream(seed, "prompts", epoch)
            yield from (prompts[i] for i in torch.randperm(len(prompts), generator=generator))

    start = first % len(prompts)
    return list(islice(order(), start, start + n))
