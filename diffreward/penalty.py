"""What keeps the policy near its reference: a distance between the two, weighted and budgeted.

A penalty is measured where a method evaluates the network anyway, on recorded steps or at noised
samples, and costs one evaluation of the reference more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffreward.diffusion import Diffusion, Step
from diffreward.policy import Policy
from diffreward.transitions import Gaussian

Distance = Literal["kl", "chi_squared", "velocity"]

_COEFFICIENT = "penalty coefficient"
"""Under this name the policy remembers it, once it has been adapted."""


@dataclass(frozen=True)
class Penalty:
    """A distance from the reference, added to a method's loss.

    Args:
        distance: "kl" is KL(policy || reference) of the laws of each step, in closed form.
            "chi_squared" is that divergence of the same laws if they are Gaussian, exp(2 KL) - 1 of
            one variance: it grows faster far from the reference (Huang et al., 2025, ICLR,
            arXiv:2407.13399, argue for it). "velocity" is the squared distance of the velocities
            (x - clean) / sigma: unlike the KL it does not grow as steps become less noisy. For
            methods that see no steps, the first is that of the laws which the network's outputs
            stand for (unit Gaussians around them, or categorical laws of tokens), the second
            follows from it, and the third is the squared distance of the outputs.
        weight: of the distance, in units of the loss; 0 is no penalty, at no cost.
        reduction: "sum" is the distance of a whole path, in nats for the KL; "mean" is per step and
            dimension, the unit of most published weights.
        budget: of the distance, after the reduction; no limit if not given.
        over_budget: "adapt" multiplies the weight after each update by up to 1.2 where the distance
            is above the budget, and divides it where it is below (Ziegler et al., 2019,
            arXiv:1909.08593, section 2.2). "stop" ends the run at the first update above it.

    Raises:
        ValueError: if the weight is negative or the budget not positive.
    """

    distance: Distance = "kl"
    weight: float = 0.01
    reduction: Literal["mean", "sum"] = "mean"
    budget: float | None = None
    over_budget: Literal["adapt", "stop"] = "adapt"

    def __post_init__(self) -> None:
        if self.weight < 0 or (self.budget is not None and self.budget <= 0):
            raise ValueError(
                f"a penalty has weight >= 0 and a budget > 0, got {self.weight} and {self.budget}"
            )

    def between_steps(self, ours: Step, theirs: Step, diffusion: Diffusion, k: int) -> Tensor:
        """The distance of two laws of x_{k+1} at the same states x_k, (B,), summed or averaged.

        Args:
            ours: of the policy.
            theirs: of the reference.
            diffusion: whose step k that is.
            k: the step.

        Raises:
            TypeError: if the laws have no such distance.
        """
        unit = ours.clean[0].numel() if self.reduction == "mean" else 1
        return _BETWEEN_STEPS[self.distance](ours, theirs, diffusion, k, unit)

    def between_predictions(self, ours: Tensor, theirs: Tensor, diffusion: Diffusion) -> Tensor:
        """The distance of two outputs of the network, (B, *event) -> (B,), summed or averaged."""
        unit = ours[0].numel() if self.reduction == "mean" else 1
        return _BETWEEN_OUTPUTS[self.distance](ours, theirs, diffusion, unit)

    def coefficient(self, policy: Policy) -> float:
        """The present weight."""
        return policy.numbers.get(_COEFFICIENT, self.weight)

    def adapt(self, policy: Policy, distance: float) -> None:
        """Change the weight after an update in which the policy was at a distance."""
        if self.budget is not None and self.over_budget == "adapt":
            excess = max(-0.2, min(0.2, distance / self.budget - 1))
            factor = 1 + excess if excess > 0 else 1 / (1 - excess)
            policy.numbers[_COEFFICIENT] = factor * self.coefficient(policy)

    def exhausted(self, distance: float) -> bool:
        """Whether the run is to end at this distance."""
        return self.budget is not None and self.over_budget == "stop" and distance > self.budget


def _kl(ours: Step, theirs: Step, diffusion: Diffusion, k: int, unit: int) -> Tensor:
    return ours.transition.kl(theirs.transition) / unit


def _chi_squared(ours: Step, theirs: Step, diffusion: Diffusion, k: int, unit: int) -> Tensor:
    if not isinstance(ours.transition, Gaussian):
        kind = type(ours.transition).__name__
        raise TypeError(f"the chi-squared penalty is for Gaussian steps, got a {kind}")
    return torch.expm1(2 * _kl(ours, theirs, diffusion, k, unit))


def _velocity(ours: Step, theirs: Step, diffusion: Diffusion, k: int, unit: int) -> Tensor:
    apart = (ours.clean - theirs.clean) / diffusion.levels[k].sigma
    return apart.square().flatten(1).sum(1) / unit


_BETWEEN_STEPS: Mapping[Distance, Callable[[Step, Step, Diffusion, int, int], Tensor]] = {
    "kl": _kl,
    "chi_squared": _chi_squared,
    "velocity": _velocity,
}


def _between_velocities(ours: Tensor, theirs: Tensor, diffusion: Diffusion, unit: int) -> Tensor:
    _ = diffusion.levels  # Tokens have none, and say so.
    return (ours - theirs).square().flatten(1).sum(1) / unit


_BETWEEN_OUTPUTS: Mapping[Distance, Callable[[Tensor, Tensor, Diffusion, int], Tensor]] = {
    "kl": lambda ours, theirs, diffusion, unit: diffusion.output_kl(ours, theirs) / unit,
    "chi_squared": lambda ours, theirs, diffusion, unit: torch.expm1(
        2 * diffusion.output_kl(ours, theirs) / unit
    ),
    "velocity": _between_velocities,
}

NO_PENALTY = Penalty(weight=0.0)
"""What methods without a penalty have."""
