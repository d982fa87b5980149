"""Maximise one reward subject to lower bounds on others, by Lagrange multipliers.

The problem is: maximise the mean of A, subject to mean B_i >= b_i. Its Lagrangian is the score
A + sum_i lambda_i (B_i - b_i); while the policy ascends it, each multiplier descends it,
lambda_i <- max(0, lambda_i - rate (mean B_i - b_i)), and so is the weight that just keeps its
constraint. Where a constraint holds by itself, its multiplier is 0.

Sources: Moskovitz et al. (2024), ICLR, arXiv:2310.04373, for several reward models; Safe RLHF, Dai
et al. (2024), ICLR, arXiv:2310.12773.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffreward.adaptive import Adaptive
from diffreward.gathering import gathered_rows
from diffreward.reward import Reward, RewardFunction, score
from diffreward.samples import Samples


@dataclass(frozen=True)
class Constraint(Reward):
    """A reward whose mean is to be at least a bound; as a reward, how far a sample is above it.

    For an upper bound, negate both: ``Constraint(-reward, -bound, rate)``.

    Args:
        reward: what is bounded.
        at_least: the bound, in units of the reward.
        rate: how far the multiplier moves in an update, per unit that the mean is off the bound.
            Large rates swing around the right multiplier, small ones take long to it.

    Raises:
        ValueError: if the rate is not above 0.
    """

    reward: Reward | RewardFunction
    at_least: float
    rate: float

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"the rate of a constraint is above 0, got {self.rate}")

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return score(self.reward, samples, prompts) - self.at_least


class Constrained(Adaptive):
    """An objective, and multipliers times how far the constraints are met.

    The multipliers start at 0 and move on after each update of training, by the means over what
    all processes have scored in it. The score of a sample depends on them, so that its mean says
    little about success: to see the objective and the constraints themselves, name them under
    ``evaluation.rewards``. Differentiable if the parts are.

    Args:
        objective: A, to maximise.
        constraints: one or more.
        normalised: divide by 1 + the sum of the multipliers, so that the score keeps its size as
            they grow. The optimum is the same; what changes is the size of a gradient of the score,
            and its weight beside a penalty.

    Attributes:
        multipliers: lambda, (C,) float64, at least 0, in units of the objective per unit of the
            constraint's reward.

    Raises:
        ValueError: if there is no constraint.
    """

    def __init__(
        self,
        objective: Reward | RewardFunction,
        constraints: Sequence[Constraint],
        normalised: bool = False,
    ) -> None:
        if not constraints:
            raise ValueError("there are no constraints; the objective alone is a reward")
        self.objective = objective
        self.constraints = tuple(constraints)
        self.normalised = normalised
        self.multipliers = torch.zeros(len(constraints), dtype=torch.float64)
        self._seen: list[Tensor] = []

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        device = samples.device
        objective = score(self.objective, samples, prompts).to(device)
        columns = [score(one, samples, prompts).to(device) for one in self.constraints]
        above = torch.stack(columns, dim=1)
        if self.adapting:
            self._seen.append(above.detach().cpu().double())
        total = objective + (above * self.multipliers.to(above)).sum(1)
        return total / (1 + float(self.multipliers.sum())) if self.normalised else total

    def advance(self) -> None:
        nothing = torch.zeros(0, len(self.constraints), dtype=torch.float64)
        above, _ = gathered_rows(torch.cat([nothing, *self._seen]))
        rates = torch.tensor([one.rate for one in self.constraints], dtype=torch.float64)
        # A constraint without any score says nothing about its multiplier.
        self.multipliers = (self.multipliers - rates * above.nanmean(0).nan_to_num(0)).clamp(min=0)
        self._seen = []

    def tensors(self) -> dict[str, Tensor]:
        return {"multipliers": self.multipliers}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.multipliers = tensors["multipliers"]
