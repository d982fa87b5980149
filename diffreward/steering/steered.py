"""The Feynman-Kac model of a diffusion steered by a reward: FK steering, SVDD, best-of-N.

The target is p(x_K | c) exp(scale * reward(x_K)). A particle keeps the network's `Step` at its own
state, so that one evaluation serves the potential (by the clean prediction) and the next move (by
the transition).

Source: Singhal et al. (2025), ICML, arXiv:2501.06848, algorithm 1, with resampling before the noise
of the next step is drawn; a deterministic step keeps the duplicates that resampling makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffreward import samples as sample_batches
from diffreward import transitions
from diffreward.diffusion import Diffusion, Step, chunks
from diffreward.random import Source
from diffreward.reward import RewardFunction, score
from diffreward.samples import Samples
from diffreward.steering.methods import FKSteering
from diffreward.steering.smc import FeynmanKac


@dataclass(frozen=True)
class Particles:
    """n particles at one time; the bookkeeping is in float64 on the CPU.

    Args:
        x: states, (n, *event).
        step: the network at x; None for finished particles.
        score: of the rewards so far, (n,): see `diffreward.steering.potentials`.
        log_gain: what the last move added to the log-weight, (n,).
        samples: what the reward has just judged, if it has.
        rewards: its judgement, (n,); NaN where it failed or was not asked.
    """

    x: Tensor
    step: Step | None
    score: Tensor
    log_gain: Tensor
    samples: Samples | None
    rewards: Tensor

    def __getitem__(self, rows: Tensor) -> Particles:
        return Particles(
            self.x[rows],
            None if self.step is None else self.step[rows],
            self.score[rows],
            self.log_gain[rows],
            None if self.samples is None else self.samples[rows],
            self.rewards[rows],
        )


class SteeredDiffusion(FeynmanKac[Particles]):
    """N particles per prompt of a diffusion, weighted by a reward.

    A particle that the reward cannot score dies: a failure is not a reward. Counts what it uses.

    Args:
        diffusion: the model, unchanged.
        reward: of decoded samples; no gradient is asked of it.
        prompts: G of them.
        settings: N, scale, potential and when to score; the rest is for `smc`.
        source: random numbers of the chains; one generator per particle, or one for all.
        rows: particles that go through network, decoder and reward at a time.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        reward: RewardFunction,
        prompts: Sequence[str],
        settings: FKSteering,
        source: Source = None,
        rows: int = 64,
    ) -> None:
        self._diffusion, self._reward = diffusion, reward
        self._condition, self._particles = diffusion.encode(prompts), settings.particles
        self._scale, self._potential = settings.scale, settings.potential_function()
        self._scored = {*settings.scored_steps(diffusion.num_steps), diffusion.num_steps}
        self._source, self._rows = source, rows
        self.network_rows, self.scored_rows = 0, 0
        self.failures = torch.zeros(len(prompts), dtype=torch.int64)

    @property
    def num_moves(self) -> int:
        return self._diffusion.num_steps

    @torch.no_grad()
    def start(self) -> Particles:
        x = self._diffusion.prior(len(self._condition) * self._particles, self._source)
        return self._arrive(0, x, torch.zeros(len(x), dtype=torch.float64))

    @torch.no_grad()
    def move(self, t: int, ancestors: Particles) -> Particles:
        if ancestors.step is None:
            raise ValueError("finished particles do not move")
        x = ancestors.step.transition.sample(self._source)
        return self._arrive(t, x, ancestors.score)

    def log_potential(self, t: int, x: Particles) -> Tensor:
        return x.log_gain

    def _arrive(self, t: int, x: Tensor, score: Tensor) -> Particles:
        """Evaluate network and reward at the states x_t of particles with these scores."""
        parts = [self._evaluate(t, x, block) for block in chunks(len(x), self._rows)]
        steps = [step for step, _, _ in parts if step is not None]
        samples = [batch for _, batch, _ in parts if batch is not None]
        step = _concatenate(steps) if steps else None
        if not samples:
            unknown = torch.full_like(score, torch.nan)
            return Particles(x, step, score, torch.zeros_like(score), None, unknown)
        rewards = torch.cat([scores for _, _, scores in parts])
        failed = rewards.isnan()
        self.scored_rows += len(rewards)
        self.failures += failed.reshape(-1, self._particles).sum(1)
        telescoped = t in (min(self._scored), self.num_moves)
        new = rewards if telescoped else self._potential(score, rewards)
        gain = (self._scale * (new - score)).masked_fill(failed, -torch.inf)
        kept = torch.where(failed, score, new)
        return Particles(x, step, kept, gain, sample_batches.concatenate(samples), rewards)

    def _evaluate(
        self, t: int, x: Tensor, block: Tensor
    ) -> tuple[Step | None, Samples | None, Tensor]:
        condition, states = self._condition[block // self._particles], x[block]
        step = None
        if t < self.num_moves:
            step = self._diffusion.step(states, t, condition)
            self.network_rows += len(block)
        if t not in self._scored:
            return step, None, states.new_empty(0)
        batch = self._diffusion.decode(states if step is None else step.clean)
        rewards = score(self._reward, batch, condition.prompts)
        return step, batch, rewards.cpu().double()


def _concatenate(steps: Sequence[Step]) -> Step:
    laws = transitions.concatenate([step.transition for step in steps])
    return Step(laws, torch.cat([step.clean for step in steps]))
