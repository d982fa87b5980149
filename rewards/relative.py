"""Scores relative to other scores: those of the prompt, of the batch, or of the training so far.

Sums of rewards with unlike units mean little; relative to their own spread they can be added. Also
what a reward gives for one prompt can so be compared with what it gives for another.

Where the others are those of the same call, the score of a sample depends on them, and scores of
two calls cannot be compared: this is for methods that score an update as a whole and compare its
samples, not for steering, nor for one that differentiates the reward for a few samples at a time.
All these scores are about 0, or 1/2, whatever the samples: to see progress, name the rewards
themselves under ``evaluation.rewards``.

Samples without a score (NaN) count for nothing and stay without one. Means and deviations are
constants to a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffreward.adaptive import Adaptive
from diffreward.gathering import gathered_rows
from diffreward.reward import Reward, RewardFunction, WeightedSum, score
from diffreward.samples import Samples

Scope = Literal["prompt", "batch"]
"""The samples of a call with the same prompt, in this process; or all that the processes score in
that call, which each of them then has to make, lest the others wait for ever."""


@dataclass(frozen=True)
class Standardised(Reward):
    """A reward less the mean of its scores, divided by their standard deviation.

    Where all scores are equal up to rounding (a standard deviation below 1e-6, or a millionth of
    the mean), the score is 0, not noise divided by almost 0; so also for the only sample of a
    prompt. The deviation is that of the N scores, with 1 / N. Differentiable if the reward is.

    Args:
        reward: what is standardised.
        scope: the scores that it is compared with.
    """

    reward: Reward | RewardFunction
    scope: Scope = "prompt"

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        scores = score(self.reward, samples, prompts)
        return _compared(scores, prompts, self.scope, _standardised)


class NormalisedSum(Reward):
    """The weighted sum of rewards, each first standardised among the samples of its prompt.

    So that no reward counts for more because of its unit, and that a prompt for which all samples
    get equal scores from one reward still learns from the others alone.

    Source: GDPO, Liu et al. (2026), arXiv:2601.05242 (``normalize_then_sum`` of TRL), whose
    deviations are of N - 1 samples. They divide the sum by its deviation over the whole batch
    afterwards: that is what DDPO does with ``scale: batch``.

    Args:
        rewards: one or more.
        weights: one per reward, in standard deviations.

    Raises:
        ValueError: if there is not one weight per reward.
    """

    def __init__(
        self, rewards: Sequence[Reward | RewardFunction], weights: Sequence[float]
    ) -> None:
        self.sum = WeightedSum([Standardised(reward) for reward in rewards], weights)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return self.sum(samples, prompts)


@dataclass(frozen=True)
class Ranked(Reward):
    """The rank of a score among the others, from 0 for the least to 1 for the greatest.

    Equal scores share the mean of their ranks; the only sample of its kind has 1/2. Outliers count
    as any other, and so does a reward whose unit bends: only the order matters. Not differentiable.

    Args:
        reward: what is ranked.
        scope: the scores that it is compared with.
    """

    reward: Reward | RewardFunction
    scope: Scope = "prompt"

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        scores = score(self.reward, samples, prompts).detach()
        return _compared(scores, prompts, self.scope, _ranks)


class RunningStandardised(Adaptive):
    """A reward less the mean of all its scores in training so far, divided by their deviation.

    The moments are those of the updates before: all samples of an update are standardised alike,
    as is an evaluation after it, and the score does not depend on the rest of its batch. In the
    first update it is the reward itself. Differentiable if the reward is.

    Args:
        reward: what is standardised.

    Attributes:
        moments: how many scores there were, their mean, and the sum of their squared distances from
            it: (3,) float64.
    """

    def __init__(self, reward: Reward | RewardFunction) -> None:
        self.reward = reward
        self.moments = torch.zeros(3, dtype=torch.float64)
        self._seen: list[Tensor] = []

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        scores = score(self.reward, samples, prompts)
        wide = scores.cpu().double()
        if self.adapting:
            self._seen.append(wide.detach())
        n, mean, squares = self.moments
        if n == 0:
            return scores
        return _distance(wide, mean, (squares / n).sqrt()).to(scores)

    def advance(self) -> None:
        nothing = torch.zeros(0, dtype=torch.float64)
        seen, _ = gathered_rows(torch.cat([nothing, *self._seen]))
        self.moments = _joined(self.moments, seen[seen.isfinite()])
        self._seen = []

    def tensors(self) -> dict[str, Tensor]:
        return {"moments": self.moments}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.moments = tensors["moments"]


def _compared(
    scores: Tensor,
    prompts: Sequence[str],
    scope: Scope,
    compare: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The scores of each sample, (B,), compared with those in scope that are not NaN."""
    wide = scores.cpu().double()
    if scope == "batch":
        everyone, _ = gathered_rows(wide.detach())
        found = compare(wide, _scored(everyone))
    else:
        found = torch.zeros_like(wide)
        for rows in _rows_of_each(prompts):
            found[rows] = compare(wide[rows], _scored(wide[rows]))
    return found.to(scores)


def _standardised(scores: Tensor, others: Tensor) -> Tensor:
    mean = others.mean()
    return _distance(scores, mean, (others - mean).square().mean().sqrt())


def _distance(scores: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """How many deviations the scores are above the mean; 0 if there is no deviation."""
    negligible = deviation < 1e-6 * mean.abs().clamp(min=1)
    return (scores - mean) / deviation.masked_fill(negligible, torch.inf)


def _ranks(scores: Tensor, others: Tensor) -> Tensor:
    """The ranks of scores that are among the others, in [0, 1]."""
    below = (scores[:, None] > others).sum(1)
    equal = (scores[:, None] == others).sum(1)
    most = len(others) - 1
    ranks = (below + (equal - 1) / 2) / most if most > 0 else torch.full(scores.shape, 0.5)
    return ranks.to(scores).masked_fill(scores.isnan(), torch.nan)


def _joined(moments: Tensor, values: Tensor) -> Tensor:
    """Moments with more values in them, by the pairwise update of Chan et al. (1983)."""
    if not len(values):
        return moments
    n, mean, squares = moments
    more, their_mean = len(values), values.mean()
    total, apart = n + more, their_mean - mean
    between = apart.square() * n * more / total
    within = (values - their_mean).square().sum()
    return torch.stack([total, mean + apart * more / total, squares + within + between])


def _scored(scores: Tensor) -> Tensor:
    return scores.detach()[~scores.isnan()]


def _rows_of_each(prompts: Sequence[str]) -> list[list[int]]:
    """The rows of each different prompt."""
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    return list(rows.values())
