"""What became of the prompts of a steering run: the lines of its ``results.jsonl``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from diffreward.evaluation import measure
from diffreward.record import Measure

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Outcome:
    """What became of a prompt: a line of ``results.jsonl``.

    Args:
        number: of the prompt in the file, from 0.
        prompt: itself.
        seed: of the generator that the pipeline was called with.
        file: of the chosen sample; None, as all below, if the prompt failed.
        reward: of the chosen sample.
        mean_reward: of its N particles.
        ess: the smallest effective sample size on the way, in [1, N].
        log_evidence: in nats; None as well if the method has none.
        network_rows: states that went through the network.
        scored_rows: samples that were decoded and scored.
        seconds: its share of the call's.
        failure: why there is no sample.
    """

    number: int
    prompt: str
    seed: int
    file: str | None = None
    reward: float | None = None
    mean_reward: float | None = None
    ess: float | None = None
    log_evidence: float | None = None
    network_rows: int | None = None
    scored_rows: int | None = None
    seconds: float | None = None
    failure: str | None = None


def append(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the next outcomes."""
    with (folder / RESULTS).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes)


def read_outcomes(folder: Path, prompts: Sequence[str]) -> list[Outcome]:
    """The outcomes so far; a line that was cut off in the middle is removed from the file.

    Raises:
        ValueError: if they are those of other prompts.
    """
    file = folder / RESULTS
    if not file.is_file():
        return []
    whole, _, rest = file.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        os.truncate(file, file.stat().st_size - len(rest.encode()))
    outcomes = [Outcome(**json.loads(line)) for line in whole.splitlines()]
    for i, outcome in enumerate(outcomes):
        here = prompts[i] if i < len(prompts) else None
        if (outcome.number, outcome.prompt) != (i, here):
            raise ValueError(
                f"line {i + 1} of {file} is of prompt {outcome.number}, {outcome.prompt!r}; prompt "
                f"{i} of this run is {here!r}. Choose another --output"
            )
    return outcomes


def mean(values: Iterable[float | None]) -> Measure:
    """Mean and standard error of the values that are there."""
    return measure(torch.tensor([math.nan if v is None else v for v in values]))


def progress(outcomes: Sequence[Outcome]) -> str:
    """How it goes so far, in a few words."""
    failed = sum(outcome.failure is not None for outcome in outcomes)
    reward = f"reward {mean(outcome.reward for outcome in outcomes).mean:.4g}"
    return f"{reward}, {failed} failed" if failed else reward
