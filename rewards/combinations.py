"""Several rewards as one, sample by sample, where a weighted sum lets one make up for another.

Source of the soft minimum: arXiv:2606.09073, where -b log E exp(-r / b) is what an uncertain reward
r is worth to a policy that is regularised by a KL divergence; its limits are the mean, the worst
case, and the mean less a multiple of the variance (`diffreward.rewards.PessimisticEnsemble`).

All have the scores of the sample as their only input, and no score (NaN) where a part has none. To
see what became of the parts, name them under ``evaluation.rewards``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffreward.reward import Reward, RewardFunction, score_all
from diffreward.samples import Samples


@dataclass(frozen=True)
class WorstCase(Reward):
    """The least of several rewards; its gradient is that of the least, shared between equals.

    The rewards are in one unit: models of the same thing, or `diffreward.rewards.PAR` of each.

    Args:
        rewards: one or more.

    Raises:
        ValueError: if there is none.
    """

    rewards: Sequence[Reward | RewardFunction]

    def __post_init__(self) -> None:
        _check_rewards(self.rewards)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return score_all(self.rewards, samples, prompts).amin(0)


@dataclass(frozen=True)
class SoftMinimum(Reward):
    """-b log mean exp(-r / b) over several rewards r: between their least and their mean.

    Every reward gets a share of the gradient, softmax(-r / b), the worst the most.

    Args:
        rewards: one or more, in one unit.
        temperature: b, in that unit. Towards 0 the score is the least reward; where b is large
            beside their differences, it is their mean less their variance / (2 b).

    Raises:
        ValueError: if there is no reward, or the temperature is not above 0 and finite.
    """

    rewards: Sequence[Reward | RewardFunction]
    temperature: float

    def __post_init__(self) -> None:
        _check_rewards(self.rewards)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"the temperature is above 0 and finite, got {self.temperature}")

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        scores, b = score_all(self.rewards, samples, prompts), self.temperature
        # From the least score on: the exponentials cannot overflow, and for a large b, where the
        # logarithm is that of almost 1, no digits are lost. The result does not depend on it.
        least = scores.detach().amin(0)
        return least - b * torch.expm1((least - scores) / b).mean(0).log1p()


@dataclass(frozen=True)
class Product(Reward):
    """The product of several rewards: good only where all are good.

    It is meant for rewards in [0, 1], such as probabilities. A negative score counts as 0, without
    gradient: two of them would make a good one.

    Args:
        rewards: one or more.

    Raises:
        ValueError: if there is none.
    """

    rewards: Sequence[Reward | RewardFunction]

    def __post_init__(self) -> None:
        _check_rewards(self.rewards)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        scores = score_all(self.rewards, samples, prompts)
        # Not clamp, whose gradient at 0 depends on the version of torch.
        return torch.where(scores < 0, 0.0, scores).prod(0)


@dataclass(frozen=True)
class Gated(Reward):
    """A reward that counts only where another one is above a threshold.

    So that an easy reward is not bought with a hard one, as the conditioned rewards of GDPO
    (arXiv:2601.05242). The gate gives no gradient, and where it is shut there is none: a method
    that differentiates the reward needs samples for which it is open.

    Args:
        reward: what counts.
        gate: what is to be above the threshold first.
        threshold: in units of the gate.
        otherwise: the score where the gate is not above the threshold; below what the reward gives,
            so that the open gate is the better one. NaN leaves such samples out.
    """

    reward: Reward | RewardFunction
    gate: Reward | RewardFunction
    threshold: float
    otherwise: float

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        scores, gate = score_all([self.reward, self.gate], samples, prompts)
        gated = torch.where(gate > self.threshold, scores, self.otherwise)
        return gated.masked_fill(scores.isnan() | gate.isnan(), torch.nan)


def _check_rewards(rewards: Sequence[RewardFunction]) -> None:
    if not rewards:
        raise ValueError("there are no rewards to combine")
