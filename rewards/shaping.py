"""Scores mapped to other scores, each by itself: bounded, so that more is worth less and less.

A reward model is right only about samples like those it has seen, and a score that is far above all
of them is a sign of its errors rather than of quality. What is bounded leaves little to gain there.

To see the reward itself, name it under ``evaluation.rewards``. What is affine is arithmetic of
rewards: ``2 * reward - 1.0``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffreward.reward import Reward, RewardFunction, score
from diffreward.samples import Samples


class PAR(Reward):
    """Preference As Reward: the probability of being preferred to samples of the base model.

    The score is the mean of sigmoid(scale (r - r_m)) over M reference scores r_m, in (0, 1), and
    differentiable if the reward is. It rises fastest where the sample is as good as the references.

    Source: Fu et al. (2025), arXiv:2502.18770; their best results need one reference per prompt.

    Args:
        reward: r; best one that was trained on preferences, whose differences are log-odds.
        references: the scores of the base model's samples for each prompt; or one number for all
            prompts; or the ``samples/000000/index.json`` of a run with this reward, which holds the
            scores before training of as many samples as its ``evaluation.shown`` says.
        scale: of the differences, in log-odds per unit of the reward.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a prompt has no reference, when made or when it is scored; or if the scale is
            not above 0.
    """

    def __init__(
        self,
        reward: Reward | RewardFunction,
        references: float | str | Mapping[str, Sequence[float]],
        scale: float = 1.0,
    ) -> None:
        if not scale > 0:
            raise ValueError(f"the scale is above 0, got {scale}")
        self.reward = reward
        self.scale = scale
        self._everywhere, self._of_prompt = _references(references)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        scores = score(self.reward, samples, prompts)
        # Prompts have unequal numbers of references.
        preferred = [
            torch.sigmoid(self.scale * (one - self._reference(prompt).to(one))).mean()
            for one, prompt in zip(scores, prompts, strict=True)
        ]
        return torch.stack(preferred)

    def _reference(self, prompt: str) -> Tensor:
        found = self._of_prompt.get(prompt, self._everywhere)
        if found is None:
            raise ValueError(
                f"there is no reference score for the prompt {prompt!r}; there are some for "
                f"{len(self._of_prompt)} prompts, such as {next(iter(self._of_prompt), None)!r}"
            )
        return found


@dataclass(frozen=True)
class Clipped(Reward):
    """A reward, but never outside of an interval; the gradient is 0 outside, not straight-through.

    So a method that differentiates the reward stops pushing a sample that is good enough, and one
    that compares samples has nothing to choose between two of them.

    Args:
        reward: what is clipped.
        low: the least score, below `high`.
        high: the greatest.

    Raises:
        ValueError: if there is no room between the two.
    """

    reward: Reward | RewardFunction
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low is below high, got {self.low} and {self.high}")

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return score(self.reward, samples, prompts).clamp(self.low, self.high)


def _references(
    given: float | str | Mapping[str, Sequence[float]],
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The reference scores of all prompts if they are the same, and of each prompt otherwise."""
    if isinstance(given, int | float):
        return torch.tensor([float(given)]), {}
    of_prompt = _scores_of_index(Path(given)) if isinstance(given, str) else given
    empty = [prompt for prompt, scores in of_prompt.items() if not len(scores)]
    if empty or not of_prompt:
        raise ValueError(f"there is no reference score for {empty or 'any prompt'}")
    return None, {prompt: torch.tensor(scores).float() for prompt, scores in of_prompt.items()}


def _scores_of_index(file: Path) -> dict[str, list[float]]:
    """The scores of the trained reward in the index of an evaluation's samples, by prompt."""
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no file {file}; a run writes samples/000000/index.json before it trains"
        )
    found: dict[str, list[float]] = {}
    for entry in json.loads(file.read_text(encoding="utf-8")):
        value = entry["scores"]["reward"]
        found.setdefault(entry["prompt"], []).extend([] if value is None else [value])
    return found
