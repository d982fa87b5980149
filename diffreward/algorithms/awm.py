"""AWM: advantage weighted matching, the policy gradient on the pretraining loss.

Source: Xue et al. (2025), arXiv:2509.25050, and the authors' code. The log-probability of a sample
is replaced by its negative denoising error, rescaled as |error|^power by default ("ghuber" in the
code, where power is 1/4), and pushed up or down with the advantage, by PPO's clipped ratio. A
moving average of the policy holds it back. The code also has a weight 1e-3 to 3e-3 on the squared
distance to the reference: Penalty("velocity", 1e-3).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffreward.algorithm import Algorithm, Batch, Finished, finished_samples
from diffreward.feedback import Scale, advantages, even_weights
from diffreward.matching import (
    Decay,
    Times,
    matching_errors,
    noise,
    noised_entries,
    predictions,
)
from diffreward.penalty import NO_PENALTY, Penalty
from diffreward.policy import Policy
from diffreward.policy_gradient import clipped_surrogate
from diffreward.replay import Losses, descend_sum
from diffreward.reward import RewardFunction

BRIEF = Decay(slope=0.001, most=0.3)

_OLD, _AVERAGE = "old", "average"


@dataclass(frozen=True)
class AWM(Algorithm[Finished]):
    """Policy gradient on denoising errors.

    Args:
        clip: a sample whose ratio leaves [1 - clip, 1 + clip] gets no further push.
        scale: what advantages are divided by, see `diffreward.feedback.advantages`.
        advantage_clip: largest absolute advantage, which is then scaled to 1.
        power: of the error in the log-probability; 1 leaves it as it is.
        time_weighted: multiply the log-probability by t.
        average_weight: of the squared distance of outputs to those of the average policy.
        decay: of that average.
        draws: noise levels per sample.
        times: how noise levels are drawn, see `diffreward.matching.noise`.
        inner_steps: optimiser steps per round.
        penalty: distance from the reference.
    """

    clip: float = 1.0
    scale: Scale = "global"
    advantage_clip: float = 5.0
    power: float = 0.25
    time_weighted: bool = True
    average_weight: float = 1.0
    decay: Decay = BRIEF
    draws: int = 6
    times: Times = "uniform"
    inner_steps: int = 1
    penalty: Penalty = NO_PENALTY

    needs_density = False
    takes_data = True

    def collect(self, policy: Policy, reward: RewardFunction, batch: Batch) -> Finished:
        if self.inner_steps > 1:
            policy.keep(_OLD)
        if self.average_weight:
            steps_done = max(0, batch.update - 1) * self.inner_steps
            policy.keep(_AVERAGE, self.decay.after(steps_done))
        return finished_samples(policy, reward, batch, share_start=False)

    def losses(self, policy: Policy, experience: Finished, inner_step: int) -> Losses:
        scores, groups = experience.scores, experience.groups
        advantage = advantages(scores, groups, self.scale)
        advantage = advantage.clamp(-self.advantage_clip, self.advantage_clip)
        advantage = advantage / self.advantage_clip
        noised = noise(policy, experience, self.draws, self.times, inner_step=inner_step)
        # In the first inner step the policy is the old one.
        old = matching_errors(policy, noised, _OLD) if inner_step else None
        average = predictions(policy, noised, _AVERAGE) if self.average_weight else None
        diffusion = policy.diffusion

        def read(output: Tensor, rows: Tensor, column: int) -> Tensor:
            error = diffusion.matching_error(output, noised.targets[column][rows])
            before = error.detach() if old is None else old[rows, column]
            t = noised.times[rows, column].to(error) if self.time_weighted else 1.0
            log_ratio = t * (surrogate(error, self.power) - surrogate(before, self.power))
            loss = clipped_surrogate(log_ratio, advantage[rows], self.clip)
            if average is not None:
                # The mean square of what separates unit Gaussians, and defined for tokens as well.
                apart = 2 * diffusion.output_kl(output, average[column][rows]) / output[0].numel()
                loss = loss + self.average_weight * apart
            return loss

        weights = even_weights(scores.isfinite(), groups) / self.draws
        entries = noised_entries(policy, noised, read)
        per_draw = weights[:, None].expand(entries.shape)
        return (yield from descend_sum(policy, entries, per_draw, self.penalty))


def surrogate(error: Tensor, power: float) -> Tensor:
    """The log-probability that a denoising error stands for: -error^power / power, (B,).

    Up to a constant, and smooth at 0: errors have 1e-10 added.
    """
    return -(error + 1e-10).pow(power) / power
