"""The one particle filter that all steering methods are, and what may be set of it.

Source: FK steering, Singhal et al. (2025), ICML, arXiv:2501.06848; our scale is their lambda. Other
methods, as settings of it, are in `diffreward.steering.presets`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from diffreward.random import Source
from diffreward.steering import potentials, resampling
from diffreward.steering.potentials import Potential
from diffreward.steering.resampling import Resampling
from diffreward.steering.smc import ParticleFilter

POTENTIALS: dict[str, Potential] = {
    "difference": potentials.difference,
    "max": potentials.maximum,
    "sum": potentials.total,
}

SCHEMES: dict[str, Resampling] = {
    "multinomial": resampling.multinomial,
    "residual": resampling.residual,
    "stratified": resampling.stratified,
    "systematic": resampling.systematic,
    "ssp": resampling.ssp,
    "winner": resampling.winner,
}

TEMPERING: dict[str, Callable[[float], float]] = {
    "none": lambda share: 1.0,
    "linear": lambda share: share,
    # DAS: 1.008^k - 1 at step k of 100.
    "exponential": lambda share: min(math.exp(100 * share * math.log(1.008)) - 1, 1.0),
}

ONCE = 1_000_000
"""An interval that no schedule is long enough to see the end of."""


class SteeringMethod(ABC):
    """Something that `diffreward.steer` and `diffreward.steer_diffusion` can run."""

    @abstractmethod
    def settings(self) -> FKSteering:
        """The particle filter that this method is."""


@dataclass(frozen=True)
class Cost:
    """What is spent.

    Args:
        network_rows: states that go through the network (guidance may double them inside).
        scored_rows: samples that are decoded and scored, finished ones included.
        seconds: of wall time, or NaN if nobody looked at the clock.
    """

    network_rows: int
    scored_rows: int
    seconds: float = math.nan


@dataclass(frozen=True)
class FKSteering(SteeringMethod):
    """Draw from p(x | prompt) exp(scale * reward(x)) by particles that are judged on their way.

    Args:
        particles: N per prompt. Cost grows with N; so does the reward that is reached.
        scale: inverse temperature, in nats per unit of reward. Large values mean more reward and
            less variety. The default suits rewards that differ by some hundredths, such as a CLIP
            cosine; a few times the inverse of the spread of a reward is a good start.
        potential: how rewards on the way add up: "difference" (the last counts), "max" (the best),
            "sum", or a function of scores and rewards.
        resampling: "systematic", "ssp", "stratified", "residual", "multinomial", "winner", or a
            `Resampling`.
        ess_threshold: a prompt's particles are resampled when their effective sample size is at
            most this share of N: 0 never, 1 whenever their weights differ.
        interval: the clean prediction is scored at every so many steps; 0: only finished samples;
            None: at every tenth part of the steps. Scoring costs a decode and a reward.
        start: the first scored state, as a share of the steps. Predictions from near noise are
            blurred. (FK's released code scores at 0.2, 0.4, 0.6 and 0.8.)
        stop: scoring on the way ends here; finished samples are always scored.
        select: of a prompt's finished particles, return the "best" by reward (as FK's released code
            does), or "draw" one by its weight, which follows the target.
        tempering: what rewards on the way are multiplied by at a share of the steps: "none" (1),
            "linear", or "exponential" (as DAS: small at first, 1 from 0.87 on). Finished samples
            count in full, so that the target is the same.
        guidance: the gradient of scale * reward at the clean prediction moves the particles, times
            this: 0 does not, 1 is DAS. Asks for a differentiable reward, at every step it scores.
        corrected: whether weights make up for guidance (DAS), so that the target is the same; not
            if guidance itself is what is wanted (universal guidance, DPS).
        rounds: whole runs; each one after the first starts near the noise of the best sample so
            far, which stays in the race.
        spread: how far from it: 0 at the same noise, 1 at new noise.
        draws: samples of the clean tokens by which each particle is judged on its way, where a
            pipeline steps tokens; by the log of the mean of exp(scale * reward). More of them judge
            better and cost rewards; the target is the same. (FK's released code takes 4 or 16.)
        returns: pairs (at, to) of shares of the steps: when the state `at` is reached, noise is
            added back to the earlier state `to`, and the way is gone again. Pairs may repeat.

    Raises:
        ValueError: if a number is out of its range.
    """

    particles: int = 4
    scale: float = 100.0
    potential: Literal["difference", "max", "sum"] | Callable[[Tensor, Tensor], Tensor] = (
        "difference"
    )
    resampling: (
        Literal["systematic", "ssp", "stratified", "residual", "multinomial", "winner"] | Resampling
    ) = "systematic"
    ess_threshold: float = 0.5
    interval: int | None = None
    start: float = 0.0
    stop: float = 1.0
    select: Literal["best", "draw"] = "best"
    tempering: Literal["none", "linear", "exponential"] = "none"
    guidance: float = 0.0
    corrected: bool = True
    rounds: int = 1
    spread: float = 0.3
    draws: int = 1
    returns: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.particles < 1 or (self.interval or 0) < 0 or self.rounds < 1:
            raise ValueError(
                f"got {self.particles} particles, interval {self.interval} and {self.rounds} "
                "rounds; expected at least 1, 0 and 1"
            )
        if self.draws < 1:
            raise ValueError(f"got {self.draws} draws; expected at least 1")
        if not (0 <= self.start <= self.stop <= 1 and 0 <= self.ess_threshold <= 1):
            raise ValueError(
                f"got start {self.start}, stop {self.stop} and ess_threshold {self.ess_threshold}; "
                "they are shares, and start comes before stop"
            )
        if not (0 <= self.spread <= 1 and all(0 <= to < at <= 1 for at, to in self.returns)):
            raise ValueError(
                f"got spread {self.spread} and returns {self.returns}; they are shares, and a "
                "return leads from a later state to an earlier one"
            )

    def settings(self) -> FKSteering:
        return self

    @property
    def selects(self) -> bool:
        """Whether a particle may be replaced on its way."""
        return self.particles > 1 and self.ess_threshold > 0 and self.interval != 0

    def scored_steps(self, num_steps: int) -> range:
        """The states k = 0, ..., num_steps - 1 at which the clean prediction is scored."""
        if self.interval == 0:
            return range(0)
        # A share such as 0.2 of 50 steps means step 10 whatever its binary digits.
        first, last = math.ceil(self.start * num_steps - 1e-9), self.stop * num_steps + 1e-9
        if self.returns:
            first = min(first, num_steps - 1)  # as `visits`: few steps have no state behind 0.8
        interval = max(1, num_steps // 10) if self.interval is None else self.interval
        return range(first, min(num_steps, math.floor(last) + 1), interval)

    def visits(self, num_steps: int) -> tuple[int, ...]:
        """The states k that are gone through, in order: each once, but for returns.

        Raises:
            ValueError: if a return starts before the state that the one before it leads to.
        """
        way: list[int] = []
        k = 0
        for at, to in self.returns:
            last = min(math.ceil(at * num_steps - 1e-9), num_steps - 1)
            if last < k:
                raise ValueError(f"got returns {self.returns}; each starts behind where one leads")
            way += range(k, last + 1)
            k = math.floor(to * num_steps + 1e-9)
        return (*way, *range(k, num_steps))

    def cost(self, num_steps: int) -> Cost:
        """What one output costs: denoiser rows, and samples that are decoded and scored."""
        visits, scored = self.visits(num_steps), self.scored_steps(num_steps)
        judged = self.draws * sum(k in scored for k in visits) + 1
        runs = self.rounds * self.particles
        return Cost(runs * len(visits), runs * judged)

    def score(self, score: Tensor, rewards: Tensor, k: int, num_steps: int) -> Tensor:
        """The scores, in units of reward, after rewards at state k; k = num_steps: when finished.

        Args:
            score: so far, (n,); 0 before the first.
            rewards: of the clean predictions at state k, or of the finished samples, (n,).
            k: one of `scored_steps`, or num_steps.
            num_steps: K.
        """
        if k == num_steps:
            return rewards
        tempered = TEMPERING[self.tempering](k / num_steps) * rewards
        first = k == self.scored_steps(num_steps)[0]
        return tempered if first else self.potential_function()(score, tempered)

    def pull(self, k: int, num_steps: int) -> float:
        """What the gradient of the reward is multiplied by at state k."""
        return self.guidance * self.scale * TEMPERING[self.tempering](k / num_steps)

    def particle_filter(self, systems: int, source: Source) -> ParticleFilter:
        """A new filter for G prompts, and the random numbers of its resampling."""
        return ParticleFilter(systems, self.particles, self.scheme(), self.ess_threshold, source)

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
