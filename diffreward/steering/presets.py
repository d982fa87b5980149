"""Steering methods of other names: each is a choice of settings of the one particle filter.

Source: SVDD, Li et al. (2024), arXiv:2408.08252; DAS, Kim et al. (2025), ICLR, arXiv:2501.05803;
search over noises and over paths, Ma et al. (2025), arXiv:2501.09732. Our scale is 1 / alpha of
SVDD and of DAS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from diffreward.steering import resampling
from diffreward.steering.methods import ONCE, BestOfN, FKSteering, SteeringMethod


@dataclass(frozen=True)
class SVDD(SteeringMethod):
    """Soft value-based decoding: at each step one of M candidates goes on, by its value.

    The M candidates are particles, all children of one parent, so that a step costs M rows and not
    M + 1. A search among siblings: it has no evidence, and with the reward of the clean prediction
    as the value (SVDD-PM) it is biased whatever M is. With the exact soft value it converges to the
    tilted law as 1 / M. SVDD-R is ``FKSteering(ess_threshold=1, interval=1, start=0, stop=1)``.

    Args:
        particles: M.
        scale: 1 / alpha, in nats per unit of reward; infinity takes the best candidate, as the
            released code does.
        interval: steps between two selections.
        start: the first selection, as a share of the steps.
    """

    particles: int = 4
    scale: float = 100.0
    interval: int = 1
    start: float = 0.0

    def settings(self) -> FKSteering:
        if math.isinf(self.scale):
            return BeamSearch(self.particles, 1, self.interval, self.start).settings()
        return FKSteering(
            self.particles,
            self.scale,
            resampling="winner",
            ess_threshold=1.0,
            interval=self.interval,
            start=self.start,
            stop=1.0,
            select="draw",
        )


@dataclass(frozen=True)
class DAS(SteeringMethod):
    """Diffusion alignment as sampling: tempered particles that the reward's gradient moves.

    Args:
        particles: N.
        scale: 1 / alpha, in nats per unit of reward.
        tempering: of rewards and gradients on the way.
        ess_threshold: as of `FKSteering`.
    """

    particles: int = 4
    scale: float = 100.0
    tempering: Literal["none", "linear", "exponential"] = "exponential"
    ess_threshold: float = 0.5

    def settings(self) -> FKSteering:
        return FKSteering(
            self.particles,
            self.scale,
            resampling="ssp",
            ess_threshold=self.ess_threshold,
            interval=1,
            start=0.0,
            stop=1.0,
            tempering=self.tempering,
            guidance=1.0,
        )


@dataclass(frozen=True)
class Guidance(SteeringMethod):
    """Move every clean prediction up the gradient of the reward; no weights, no selection.

    The score of p(x_t) becomes that of p(x_t) exp(scale * reward(clean(x_t))): universal guidance
    (Bansal et al., 2023, arXiv:2302.07121), DPS with a reward for the measurement (Chung et al.,
    2023, arXiv:2209.14687) and, on flows, the guided velocity of Flow-NRG. It keeps the pipeline's
    own sampler, and it is biased: the gradient of an expectation is not the expected gradient.

    Args:
        scale: in nats per unit of reward.
        particles: N per prompt, the best of which is returned.
        interval: steps between two gradients.
        tempering: of the gradients on the way.
    """

    scale: float = 100.0
    particles: int = 1
    interval: int = 1
    tempering: Literal["none", "linear", "exponential"] = "none"

    def settings(self) -> FKSteering:
        return FKSteering(
            self.particles,
            self.scale,
            ess_threshold=0.0,
            interval=self.interval,
            start=0.0,
            stop=1.0,
            tempering=self.tempering,
            guidance=1.0,
            corrected=False,
        )


@dataclass(frozen=True)
class BeamSearch(SteeringMethod):
    """Keep the best few by the reward of the clean prediction, each with as many children.

    Args:
        particles: N, a multiple of width.
        width: how many are kept; 1 is greedy search.
        interval: steps between two selections.
        start: the first selection, as a share of the steps.

    Raises:
        ValueError: if width does not divide particles.
    """

    particles: int = 4
    width: int = 1
    interval: int | None = None
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.particles % self.width:
            raise ValueError(
                f"got {self.particles} particles and width {self.width}; each of the kept has as "
                "many children, so width divides particles"
            )

    def settings(self) -> FKSteering:
        # Only the order of weights counts; a small scale keeps those of bad particles above zero.
        return FKSteering(
            self.particles,
            scale=1e-6,
            resampling=resampling.top(self.width),
            ess_threshold=1.0,
            interval=self.interval,
            start=self.start,
            stop=1.0,
        )


@dataclass(frozen=True)
class NoiseSearch(SteeringMethod):
    """Whole runs from N noises, then from neighbours of the best noise so far (zero-order search).

    For deterministic samplers, whose sample a noise decides: the best so far is drawn again.

    Args:
        particles: N noises per run.
        rounds: runs; one is random search, which is best-of-N.
        spread: of the neighbours: 0 at the best noise, 1 at new noise.
    """

    particles: int = 4
    rounds: int = 3
    spread: float = 0.3

    def settings(self) -> FKSteering:
        return replace(BestOfN(self.particles).settings(), rounds=self.rounds, spread=self.spread)


@dataclass(frozen=True)
class PathSearch(SteeringMethod):
    """Search over paths: keep the best few, add noise back, denoise again, and so on.

    Args:
        particles: N.
        width: how many are kept at each return; divides particles.
        at: the state from which the kept ones return, as a share of the steps.
        to: the earlier state to which noise takes them back.
        times: how often.
    """

    particles: int = 4
    width: int = 1
    at: float = 0.5
    to: float = 0.2
    times: int = 2

    def settings(self) -> FKSteering:
        # Scored at the one state from which the way goes back, each time that it is reached.
        beam = BeamSearch(self.particles, self.width, interval=ONCE, start=self.at).settings()
        return replace(beam, returns=((self.at, self.to),) * self.times)
