"""Scores on fixed prompts and fixed seeds: the same samples again, from a changed network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from diffreward.diffusion import Diffusion, decode, draw
from diffreward.random import stream
from diffreward.record import Measure, stored
from diffreward.reward import Reward, RewardFunction, score
from diffreward.samples import Samples


@dataclass(frozen=True)
class Evaluation:
    """What is measured before, during and after training.

    Args:
        prompts: a text file with a prompt per line, or a list; best prompts that training does not
            see. The training prompts if not given.
        rewards: held-out measures by name, beside the trained reward.
        samples: how many are drawn, spread over the prompts.
        every: updates from one evaluation to the next; 0 for the first and the last only.
        seed: of the samples.
        shown: how many samples are written to the run's folder and shown in the report.
    """

    prompts: str | Sequence[str] | None = None
    rewards: Mapping[str, Reward | RewardFunction] = field(default_factory=dict)
    samples: int = 64
    every: int = 10
    seed: int = 0
    shown: int = 24

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"evaluation.samples is at least 2, got {self.samples}")
        if "reward" in self.rewards:
            raise ValueError('the name "reward" is that of the trained reward; choose another')


def spread(prompts: Sequence[str], n: int) -> list[str]:
    """The prompt of each of n samples: all of them in turn, or n chosen in even strides."""
    stride = max(1.0, len(prompts) / n)
    return [prompts[int(i * stride) % len(prompts)] for i in range(n)]


def measure(scores: Tensor) -> Measure:
    """Mean and standard error of the scores that are not NaN, (B,)."""
    scored = scores[scores.isfinite()].double()
    n = len(scored)
    error = float(scored.std()) / math.sqrt(n) if n > 1 else math.nan
    return Measure(float(scored.mean()) if n else math.nan, error, n)


@torch.no_grad()
def sample(
    diffusion: Diffusion, prompts: Sequence[str], seed: int, first: int = 0, rows: int = 64
) -> Samples:
    """One sample per prompt; number i depends on the seed, `first` + i and its prompt only.

    The start x_0 is drawn from the same generator as the steps, as a diffusers pipeline does when
    it is given one generator per image.
    """
    generators = [stream(seed, "evaluation", first + i) for i in range(len(prompts))]
    clean = draw(diffusion, diffusion.encode(prompts), generators, generators, rows)
    return decode(diffusion, clean, rows)


def evaluate(
    samples: Samples, prompts: Sequence[str], rewards: Mapping[str, RewardFunction]
) -> dict[str, Tensor]:
    """The scores of some samples by measure, each (B,) on the CPU."""
    with torch.no_grad():
        return {name: score(reward, samples, prompts).cpu() for name, reward in rewards.items()}


def write_samples(
    folder: Path, samples: Samples, prompts: Sequence[str], scores: Mapping[str, Tensor]
) -> None:
    """Write samples, a file each, and ``index.json``: their prompts and scores."""
    files = samples.write(folder)
    index = [
        {
            "file": file,
            "prompt": prompt,
            "scores": {name: stored(float(values[i])) for name, values in scores.items()},
        }
        for i, (file, prompt) in enumerate(zip(files, prompts, strict=False))
    ]
    (folder / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def as_json(measures: Mapping[str, Measure]) -> dict[str, dict[str, float | None]]:
    """Measures as JSON holds them: null for NaN."""
    return {name: stored(asdict(one)) for name, one in measures.items()}
