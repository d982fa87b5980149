"""The matching engine: finished samples, noised again, and the network's error at predicting them.

For methods that look at a sample's evidence lower bound instead of the path that led to it; they
learn from any samples, drawn by any sampler or given as data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffreward.algorithm import Finished
from diffreward.diffusion import Condition, chunks
from diffreward.feedback import Pairs, even_weights, mean_over_processes
from diffreward.objectives import preference_loss, utility_loss
from diffreward.penalty import Penalty
from diffreward.policy import Policy
from diffreward.replay import Entries, Objective

Times = Literal["uniform", "logit_normal"]


@dataclass(frozen=True)
class Noised:
    """B samples, each at S noise levels.

    Args:
        states: per column, (B, *event).
        targets: per column, what the network is to predict there.
        times: (B, S), in [0, 1] with 1 = pure noise.
        condition: of the B samples.
    """

    states: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    times: Tensor
    condition: Condition

    def __getitem__(self, rows: Tensor) -> Noised:
        """Some of the samples, in the order of rows (int64 of any length)."""
        chosen = rows.cpu()
        return Noised(
            tuple(states[chosen] for states in self.states),
            tuple(targets[chosen] for targets in self.targets),
            self.times[chosen],
            self.condition[chosen],
        )

    def paired(self, pairs: Pairs) -> tuple[Noised, Pairs]:
        """Only the samples that are in a pair, and the pairs among them; all if there is none."""
        if not len(pairs.winner):
            return self, pairs
        rows, among = pairs.involved()
        return self[rows], among


@dataclass(frozen=True)
class Decay:
    """How slowly a role follows the policy: the decay of its average, which rises with time.

    Args:
        start: optimiser steps for which the decay is `first`.
        first: decay at first; 0 makes the role the policy itself.
        slope: its growth per step after that.
        most: where growth ends.
    """

    start: int = 0
    first: float = 0.0
    slope: float = 0.001
    most: float = 0.5

    def after(self, steps: int) -> float:
        """The decay after some optimiser steps, in [0, 1]."""
        return min(self.first + self.slope * max(0, steps - self.start), self.most)


def refresh(policy: Policy, role: str, update: int, every: int | None) -> None:
    """Let a role be the weights in training, at the updates 1, 1 + every, 1 + 2 every, ...

    Without `every` it is never kept, and so stays the reference.
    """
    if every is not None and (update - 1) % every == 0:
        policy.keep(role)


def noise(
    policy: Policy,
    samples: Finished,
    draws: int,
    times: Times = "uniform",
    shared: bool = False,
    inner_step: int = 0,
) -> Noised:
    """Run the forward process from finished samples.

    Args:
        policy: of whose diffusion.
        samples: B of them.
        draws: S, noise levels per sample.
        times: "uniform" in [0, 1], one per S-th of it; or the sigmoid of standard normal numbers,
            as flows are trained (Esser et al., 2024, arXiv:2403.03206, section 3.1).
        shared: samples of one prompt get the same times and noise.
        inner_step: noise is drawn anew in each.
    """
    streams = samples.batch.streams(f"noise {inner_step}", shared)
    states, targets, columns = [], [], []
    for column in range(draws):
        if times == "uniform":
            drawn = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in streams])
            t = ((column + drawn) / draws).float()
        else:
            t = torch.stack([torch.randn((), generator=g) for g in streams]).sigmoid()
        noisy, target = policy.diffusion.corrupt(samples.clean, t, streams)
        states.append(noisy)
        targets.append(target)
        columns.append(t)
    return Noised(tuple(states), tuple(targets), torch.stack(columns, 1), samples.condition)


def noised_entries(
    policy: Policy,
    noised: Noised,
    read: Callable[[Tensor, Tensor, int], Tensor] | None = None,
) -> Entries[Tensor]:
    """The network's predictions at noised samples.

    Args:
        policy: predicts.
        noised: B samples at S levels.
        read: numbers from the outputs for some rows of a column; by default the matching error.
    """
    diffusion = policy.diffusion

    def predict(rows: Tensor, column: int) -> Tensor:
        states, times = noised.states[column][rows], noised.times[rows, column]
        return diffusion.predict(states, times, noised.condition[rows])

    def error(output: Tensor, rows: Tensor, column: int) -> Tensor:
        return diffusion.matching_error(output, noised.targets[column][rows])

    def distance(penalty: Penalty, ours: Tensor, theirs: Tensor, column: int) -> Tensor:
        return penalty.between_predictions(ours, theirs, diffusion)

    shape = len(noised.times), noised.times.shape[1]
    return Entries(shape, True, predict, read or error, distance)


def predictions(policy: Policy, noised: Noised, role: str) -> tuple[Tensor, ...]:
    """What a role's network predicts at noised samples: per column, (B, *event), no gradient.

    To be asked for before the gradient of the policy's own predictions is needed: acting in a role
    swaps the weights.
    """
    entries = noised_entries(policy, noised)
    samples, columns = entries.shape
    with torch.no_grad(), policy.acting(role):
        return tuple(
            torch.cat([entries.predict(rows, s) for rows in chunks(samples, policy.rows)])
            for s in range(columns)
        )


def matching_errors(policy: Policy, noised: Noised, role: str | None = None) -> Tensor:
    """The error of each sample at each level, (B, S), without gradient.

    Args:
        policy: predicts.
        noised: B samples at S levels.
        role: whose weights: "reference", one that the policy keeps, or those in training.
    """
    entries = noised_entries(policy, noised)
    if role is None:
        return entries.values(policy.rows)
    with policy.acting(role):
        return entries.values(policy.rows)


def preference_objective(before: Tensor, pairs: Pairs, beta: float) -> Objective:
    """Diffusion-DPO on matching errors, (B, S).

    Args:
        before: the reference's errors, (B, S).
        pairs: of the B samples.
        beta: half of it multiplies the differences of errors.
    """
    return lambda errors: preference_loss(before - errors, pairs, beta / 2)


def utility_objective(before: Tensor, labels: Tensor, groups: Tensor, beta: float) -> Objective:
    """Diffusion-KTO on matching errors, (B, S): gains count from the mean log-ratio, at least 0.

    Args:
        before: the reference's errors, (B, S).
        labels: +1 or -1, (B,); samples of label 0 do not count.
        groups: (B,) int64, equal for samples of one prompt.
        beta: multiplies the differences of errors.
    """
    weights = even_weights(labels != 0, groups)

    def objective(errors: Tensor) -> Tensor:
        log_ratio = before - errors
        offset = mean_over_processes(log_ratio.detach()[labels != 0]).clamp(min=0)
        return utility_loss(log_ratio, labels, weights, offset, beta)

    return objective
