"""DRAGON: rewards of whole sets, by contrasting a positive set of own samples with a negative one.

Source: Bai et al. (2025), TMLR, arXiv:2504.15217. In each round the policy draws two sets of
samples of the same prompts; exchanging samples between them makes one set better and the other
worse by the reward, which may be that of a set (a distance to exemplars, diversity) or of single
samples; Diffusion-DPO or Diffusion-KTO then moves the policy towards the one and away from the
other. The authors released neither code nor hyper-parameters: beta is that of the two methods, and
the construction of the sets is ours, see `diffreward.contrast`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from diffreward.algorithm import Algorithm, Batch, Finished, finished_samples
from diffreward.contrast import Everyone, contrast, halves
from diffreward.feedback import matched
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
from diffreward.random import stream
from diffreward.replay import Losses, descend
from diffreward.reward import RewardFunction
from diffreward.samples import Samples
from diffreward.set_reward import as_set_reward

_ANCHOR = "anchor"


@dataclass(frozen=True)
class Contrasted(Finished):
    """Own samples, divided into two sets.

    Args:
        signs: +1 in the positive set, -1 in the negative one, 0 in neither, (B,).
    """

    signs: Tensor


@dataclass(frozen=True)
class DRAGON(Algorithm[Contrasted]):
    """Learning from a positive and a negative set.

    Args:
        objective: "dpo" on pairs of a positive and a negative sample, or "kto" on single samples.
        paired: the sets have samples of the same prompts: only such are exchanged and compared.
            Else any sample of one set may be exchanged for any of the other.
        exchanges: greedy passes of exchanges, each of which evaluates the reward of the set once
            per pair and start; 0 divides by influence.
        beta: as in `DiffusionDPO`, or in `DiffusionKTO`, whose default is 0.06.
        reduction: denoising errors are summed over the dimensions of a state, or averaged, as in
            published values of beta.
        refresh_every: updates after which the reference becomes the policy; never if not given.
        draws: noise levels per sample.
        times: how noise levels are drawn, see `diffreward.matching.noise`.
        inner_steps: optimiser steps per pair of sets.
        penalty: distance from the model before training.
    """

    objective: Literal["dpo", "kto"] = "dpo"
    paired: bool = True
    exchanges: int = 0
    beta: float = 0.3
    reduction: Reduction = "sum"
    refresh_every: int | None = None
    draws: int = 1
    times: Times = "uniform"
    inner_steps: int = 1
    penalty: Penalty = NO_PENALTY

    needs_density = False

    def collect(self, policy: Policy, reward: RewardFunction, batch: Batch) -> Contrasted:
        refresh(policy, _ANCHOR, batch.update, self.refresh_every)
        of_set, rows = as_set_reward(reward), []

        def credited(samples: Samples, prompts: Sequence[str]) -> Tensor:
            rows.append(of_set.rows(samples, prompts))
            return of_set.scores(rows[0])

        own = finished_samples(policy, credited, batch, share_start=False)
        everyone = Everyone.gathered(rows[0], own.scores, own.groups + batch.first)
        signs = contrast(
            lambda chosen: float(of_set.value(everyone.rows[chosen].flatten(0, 1))),
            everyone.credits,
            halves(everyone.groups, everyone.credits.isfinite()),
            self.paired,
            self.exchanges,
            stream(batch.seed, "exchanges", batch.update),
        )
        found = {field.name: getattr(own, field.name) for field in fields(own)}
        return Contrasted(**found, signs=signs[everyone.own].to(own.scores))

    def losses(self, policy: Policy, experience: Contrasted, inner_step: int) -> Losses:
        noised = noise(policy, experience, self.draws, self.times, True, inner_step)
        before = matching_errors(policy, noised, _ANCHOR)
        beta = self.beta * experience.unit(self.reduction)
        signs, groups = experience.signs, experience.groups
        if self.objective == "dpo":
            alike = groups if self.paired else torch.zeros_like(groups)
            pairs = matched(signs, experience.scores, alike)
            critic = preference_objective(before, pairs, beta)
        else:
            critic = utility_objective(before, signs, groups, beta)
        entries = noised_entries(policy, noised)
        return (yield from descend(policy, entries, critic, penalty=self.penalty))
