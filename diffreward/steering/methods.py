"""The settings of the steering methods; all are settings of one particle filter.

Source: FK steering, Singhal et al. (2025), ICML, arXiv:2501.06848; SVDD, Li et al. (2024),
arXiv:2408.08252.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffreward.steering import potentials, resampling
from diffreward.steering.potentials import Potential
from diffreward.steering.resampling import Resampling

POTENTIALS: dict[str, Potential] = {
    "difference": potentials.difference,
    "maximum": potentials.maximum,
    "total": potentials.total,
}

SCHEMES: dict[str, Resampling] = {
    "multinomial": resampling.multinomial,
    "residual": resampling.residual,
    "stratified": resampling.stratified,
    "systematic": resampling.systematic,
    "ssp": resampling.ssp,
    "winner": resampling.winner,
}


class SteeringMethod(ABC):
    """Something that `diffreward.steering.steer_diffusion` can run."""

    @abstractmethod
    def settings(self) -> FKSteering:
        """The particle filter that this method is."""


@dataclass(frozen=True)
class FKSteering(SteeringMethod):
    """Draw from p(x | prompt) exp(scale * reward(x)) by particles that are judged on their way.

    With resampling "winner", ess_threshold 1 and interval 1 this is SVDD: one of the N siblings is
    drawn at every step and copied. That is a search: it has no evidence and no exact target.

    Args:
        particles: N per prompt. Cost grows with N; so does the reward that is reached.
        scale: inverse temperature, in nats per unit of reward. Large values mean more reward and
            less variety.
        potential: how rewards on the way add up: "difference" (the last counts), "maximum" (the
            best), "total" (their sum), or a function of scores and rewards.
        resampling: "systematic", "ssp", "stratified", "residual", "multinomial", "winner", or a
            `Resampling`.
        ess_threshold: a prompt's particles are resampled when their effective sample size is at
            most this share of N: 0 never, 1 whenever their weights differ.
        interval: the clean prediction is scored at every so many steps; 0: only finished samples.
        start: the first scored state, as a share of the steps. Predictions from near noise are
            blurred and tell little. (FK's released code scores at 0.2, 0.4, 0.6 and 0.8.)
        stop: scoring on the way ends here; finished samples are always scored.
        select: of a prompt's finished particles, return the "best" by reward (as FK's released code
            does), or "draw" one by its weight, which follows the target.

    Raises:
        ValueError: if a number is out of its range.
    """

    particles: int = 4
    scale: float = 10.0
    potential: Literal["difference", "maximum", "total"] | Callable[[Tensor, Tensor], Tensor] = (
        "difference"
    )
    resampling: (
        Literal["systematic", "ssp", "stratified", "residual", "multinomial", "winner"] | Resampling
    ) = "systematic"
    ess_threshold: float = 0.5
    interval: int = 5
    start: float = 0.2
    stop: float = 0.8
    select: Literal["best", "draw"] = "best"

    def __post_init__(self) -> None:
        if self.particles < 1 or self.interval < 0:
            raise ValueError(
                f"got {self.particles} particles and interval {self.interval}; expected at least "
                "1 and 0"
            )
        if not (0 <= self.start <= self.stop <= 1 and 0 <= self.ess_threshold <= 1):
            raise ValueError(
                f"got start {self.start}, stop {self.stop} and ess_threshold {self.ess_threshold}; "
                "they are shares, and start comes before stop"
            )

    def settings(self) -> FKSteering:
        return self

    def scored_steps(self, num_steps: int) -> range:
        """The states k = 0, ..., num_steps - 1 at which the clean prediction is scored."""
        if self.interval == 0:
            return range(0)
        # A share such as 0.2 of 50 steps means step 10 whatever its binary digits.
        first, last = math.ceil(self.start * num_steps - 1e-9), self.stop * num_steps + 1e-9
        return range(first, min(num_steps, math.floor(last) + 1), self.interval)

    def potential_function(self) -> Potential:
        """The potential by its name, or the given one."""
        return POTENTIALS[self.potential] if isinstance(self.potential, str) else self.potential

    def scheme(self) -> Resampling:
        """The resampling scheme by its name, or the given one."""
        return SCHEMES[self.resampling] if isinstance(self.resampling, str) else self.resampling


@dataclass(frozen=True)
class BestOfN(SteeringMethod):
    """Draw N samples per prompt, return the one with the highest reward: the honest baseline.

    Args:
        particles: N.
    """

    particles: int = 4

    def settings(self) -> FKSteering:
        return FKSteering(self.particles, scale=1.0, ess_threshold=0.0, interval=0)
