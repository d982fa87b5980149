"""IPO: iterative preference optimization, rounds of critic-labelled samples with real data beside.

Source: Yang et al. (2025), arXiv:2502.02088. In each round the policy draws samples, a critic (the
reward) labels them in pairs or one by one, and the policy learns from them by Diffusion-DPO or
Diffusion-KTO, regularised by the pretraining loss on real samples. The authors released no training
code and no numbers: beta is that of the two methods, and the weight of the regulariser is ours.

The run's data are the real samples, of which the best of each prompt is fitted, and their prompts
are the ones that the policy answers. Without data nothing is regularised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from diffreward.algorithm import Algorithm, Batch, Experience, Finished, finished_samples
from diffreward.feedback import all_pairs, best, labels
from diffreward.matching import (
    Times,
    matching_errors,
    noise,
    noised_entries,
    preference_objective,
    refresh,
    utility_objective,
)
from diffreward.objectives import Reduction
from diffreward.penalty import NO_PENALTY, Penalty
from diffreward.policy import Policy
from diffreward.replay import Losses, Objective, descend, descend_sum
from diffreward.reward import RewardFunction

_ANCHOR = "anchor"


@dataclass(frozen=True)
class Labelled(Experience):
    """The policy's own samples as the critic sees them, and real ones.

    Args:
        own: samples of the policy.
        real: the batch's data, if there are any.
    """

    own: Finished
    real: Finished | None


@dataclass(frozen=True)
class IPO(Algorithm[Labelled]):
    """Preference optimization of own samples, with real data as a regulariser.

    Args:
        objective: "dpo" on pairs, or "kto" on single samples.
        beta: as in `DiffusionDPO`, or in `DiffusionKTO`, whose default is 0.06.
        reduction: denoising errors are summed over the dimensions of a state, or averaged, as in
            published values of beta.
        real_weight: of the pretraining loss on the real samples.
        round_updates: updates per round. The reference is the policy at the start of the round; the
            model before training in all rounds if not given.
        draws: noise levels per sample.
        times: how noise levels are drawn, see `diffreward.matching.noise`.
        inner_steps: optimiser steps per set of samples.
        penalty: distance from the model before training, on the policy's own samples.
    """

    objective: Literal["dpo", "kto"] = "dpo"
    beta: float = 0.3
    reduction: Reduction = "sum"
    real_weight: float = 1.0
    round_updates: int | None = None
    draws: int = 1
    times: Times = "uniform"
    inner_steps: int = 1
    penalty: Penalty = NO_PENALTY

    needs_density = False
    takes_data = True

    def collect(self, policy: Policy, reward: RewardFunction, batch: Batch) -> Labelled:
        """Gather what one round needs, without gradient.

        Raises:
            ValueError: if the policy is to draw only one sample per prompt.
        """
        if batch.samples_per_prompt < self.group_size:
            raise ValueError(
                f"IPO compares own samples of a prompt, at least {self.group_size}, got "
                f"samples_per_prompt {batch.samples_per_prompt}"
            )
        refresh(policy, _ANCHOR, batch.update, self.round_updates)
        own = finished_samples(policy, reward, replace(batch, data=None), share_start=False)
        real = None
        if batch.data is not None:
            real = finished_samples(policy, reward, batch, share_start=False)
        return Labelled(own.scores, own.groups, own, real)

    def losses(self, policy: Policy, experience: Labelled, inner_step: int) -> Losses:
        own, real = experience.own, experience.real
        noised = noise(policy, own, self.draws, self.times, True, inner_step)
        before = matching_errors(policy, noised, _ANCHOR)
        critic = self._critic(own, before)
        entries = noised_entries(policy, noised)
        metrics = yield from descend(policy, entries, critic, penalty=self.penalty)
        if real is None:
            return metrics
        regular = yield from self._fit(policy, real, inner_step)
        total = metrics["loss"] + regular["loss"]
        return {**metrics, "loss": total, "real_loss": regular["loss"]}

    def _critic(self, own: Finished, before: Tensor) -> Objective:
        beta = self.beta * own.unit(self.reduction)
        if self.objective == "dpo":
            return preference_objective(before, all_pairs(own.scores, own.groups), beta)
        return utility_objective(before, labels(own.scores, own.groups), own.groups, beta)

    def _fit(self, policy: Policy, real: Finished, inner_step: int) -> Losses:
        """The pretraining loss on the best real sample of each prompt."""
        noised = noise(policy, real, self.draws, self.times, inner_step=inner_step)
        chosen = best(real.scores, real.groups)
        entries = noised_entries(policy, noised[chosen])
        each = self.real_weight / (len(chosen) * self.draws)
        weights = real.scores.new_full(entries.shape, each)
        return (yield from descend_sum(policy, entries, weights))
