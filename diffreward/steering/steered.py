"""The Feynman-Kac model of a diffusion steered by a reward: FK steering, SVDD, DAS, best-of-N.

The target is p(x_K | c) exp(scale * reward(x_K)). A particle keeps the network's `Step` at its own
state, so that one evaluation serves the potential (by the clean prediction) and the next move (by
the transition, tilted by the reward's gradient where there is guidance).

Source: Singhal et al. (2025), ICML, arXiv:2501.06848, algorithm 1, with resampling before the noise
of the next step is drawn; a deterministic step keeps the duplicates that resampling makes. Guided
proposals: Kim et al. (2025), ICLR, arXiv:2501.05803, equation 13.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffreward import samples as sample_batches
from diffreward import transitions
from diffreward.diffusion import Diffusion, Step, chunks
from diffreward.random import Source
from diffreward.reward import RewardFunction, score
from diffreward.samples import Samples
from diffreward.steering.guidance import gradient, move
from diffreward.steering.methods import FKSteering
from diffreward.steering.smc import FeynmanKac

StateValue = Callable[[Tensor, int, Sequence[str]], Tensor]
"""Judges states x_k, (n, *event), with k and their prompts: (n,), in units of reward, NaN = cannot.

The soft value log E[exp(scale * reward(x_K)) | x_k] / scale is the best there is.
"""


@dataclass(frozen=True)
class Particles:
    """n particles at one time; the bookkeeping is in float64 on the CPU.

    Args:
        x: states, (n, *event).
        step: the network at x; None for finished particles.
        push: the gradient that guides the next move, (n, *event), in nats; None without guidance.
        score: of the rewards so far, (n,): see `diffreward.steering.potentials`.
        log_gain: what the last move added to the log-weight, (n,).
        samples: what the reward has just judged, if it has.
        rewards: its judgement, (n,); NaN where it failed or was not asked.
    """

    x: Tensor
    step: Step | None
    push: Tensor | None
    score: Tensor
    log_gain: Tensor
    samples: Samples | None
    rewards: Tensor

    def __getitem__(self, rows: Tensor) -> Particles:
        return Particles(
            self.x[rows],
            None if self.step is None else self.step[rows],
            None if self.push is None else self.push[rows],
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
        reward: of decoded samples; a gradient is asked of it only by methods with guidance.
        prompts: G of them.
        settings: N, scale, potential and when to score; the rest is for `smc`.
        source: random numbers of the chains; one generator per particle, or one for all.
        rows: particles that go through network, decoder and reward at a time.
        value: judges unfinished particles in place of the reward of their clean predictions.

    Raises:
        ValueError: if the method goes back to earlier states, runs several rounds or draws tokens.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        reward: RewardFunction,
        prompts: Sequence[str],
        settings: FKSteering,
        source: Source = None,
        rows: int = 64,
        value: StateValue | None = None,
    ) -> None:
        if settings.rounds > 1 or settings.returns or settings.draws > 1:
            raise ValueError(
                f"got {settings.rounds} rounds, returns {settings.returns} and {settings.draws} "
                "draws: search over noises and paths and drawn tokens need a pipeline, "
                "diffreward.steer(pipe, ...)"
            )
        self._diffusion, self._reward = diffusion, reward
        self._condition, self._particles = diffusion.encode(prompts), settings.particles
        self._settings = settings
        self._scored = {*settings.scored_steps(diffusion.num_steps), diffusion.num_steps}
        self._source, self._rows, self._value = source, rows, value
        self.network_rows, self.scored_rows = 0, 0
        self.history: list[tuple[int, Tensor]] = []
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
        x, correction = move(ancestors.step.transition, ancestors.push, self._source)
        there = self._arrive(t, x, ancestors.score)
        if not self._settings.corrected:
            return there
        return replace(there, log_gain=there.log_gain + correction.cpu().double())

    def log_potential(self, t: int, x: Particles) -> Tensor:
        return x.log_gain

    def _arrive(self, t: int, x: Tensor, score: Tensor) -> Particles:
        """Evaluate network and reward at the states x_t of particles with these scores."""
        parts = [self._evaluate(t, x, block) for block in chunks(len(x), self._rows)]
        steps = [step for step, _, _, _ in parts if step is not None]
        samples = [batch for _, batch, _, _ in parts if batch is not None]
        pushes = [push for _, _, _, push in parts if push is not None]
        step = _concatenate(steps) if steps else None
        push = torch.cat(pushes) if pushes else None
        if not samples:
            unknown = torch.full_like(score, torch.nan)
            return Particles(x, step, push, score, torch.zeros_like(score), None, unknown)
        rewards = torch.cat([scores for _, _, scores, _ in parts])
        failed = rewards.isnan()
        self.scored_rows += len(rewards)
        self.failures += failed.reshape(-1, self._particles).sum(1)
        if step is not None:
            self.history.append((t, rewards.reshape(-1, self._particles)))
        new = self._settings.score(score, rewards, t, self.num_moves)
        gain = (self._settings.scale * (new - score)).masked_fill(failed, -torch.inf)
        kept = torch.where(failed, score, new)
        batch = sample_batches.concatenate(samples)
        return Particles(x, step, push, kept, gain, batch, rewards)

    def _evaluate(
        self, t: int, x: Tensor, block: Tensor
    ) -> tuple[Step | None, Samples | None, Tensor, Tensor | None]:
        condition, states = self._condition[block // self._particles], x[block]
        if t == self.num_moves:
            batch = self._diffusion.decode(states)
            return None, batch, score(self._reward, batch, condition.prompts).cpu().double(), None
        self.network_rows += len(block)
        guided = t in self._scored and self._settings.guidance > 0
        with torch.set_grad_enabled(guided):
            if guided:
                states = self._diffusion.relaxed(states).requires_grad_()
            step = self._diffusion.step(states, t, condition)
            if t not in self._scored:
                return step, None, states.new_empty(0), None
            batch = self._diffusion.decode(step.clean)
            if self._value is None:
                rewards = score(self._reward, batch, condition.prompts)
            else:
                rewards = self._value(states, t, condition.prompts)
            push = None
            if guided:
                pull = self._settings.pull(t, self.num_moves)
                push = pull * gradient(rewards, states, self._reward)
                step = step.detach()
        return step, batch.detach(), rewards.detach().cpu().double(), push


def _concatenate(steps: Sequence[Step]) -> Step:
    laws = transitions.concatenate([step.transition for step in steps])
    return Step(laws, torch.cat([step.clean for step in steps]))
