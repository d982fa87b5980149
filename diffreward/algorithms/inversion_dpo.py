"""Inversion-DPO: preferences on the deterministic paths that end at winner and loser.

Source: Li et al. (2025), ACM MM, arXiv:2507.11554, and the authors' code. Both samples of a pair
are inverted by the reference; the path stands in for the unknown noise of Diffusion-DPO.

The released loss is -log sigmoid(beta / 2 (E_winner - E_loser)), where E is the distance of the
policy from the reference on the path: the squared difference of clean predictions over 2 sigma^2,
averaged over steps and dimensions, which for variance-preserving levels is the code's weight
1 / (2 alpha_bar) of squared differences of predicted noise. It is an even function of that
difference: its gradient is zero at the reference, and it cannot tell towards the winner from away
from it (`measure="released"`, for comparison; training stops at its first update). DPO's derivation
gives the opposite sign, with the same fault (`measure="derived"`).

Two measures have a gradient there. `measure="denoising"` is Diffusion-DPO with the noise known: E
is the distance of the clean prediction from the sample in which the path ends, less that of the
reference. `measure="likelihood"` is DPO itself on those paths: the log-probability of each realised
step under the sampler's own stochastic law, policy against reference. But nobody drew these steps:
what they say of winner and loser is mostly how a deterministic path differs from a stochastic one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffreward.algorithm import Algorithm, Batch, Experience, finished_samples
from diffreward.diffusion import Condition, Step, Trajectory, chunks
from diffreward.feedback import Pairs, all_pairs, best_and_worst
from diffreward.inversion import invert
from diffreward.objectives import Reduction, preference_loss
from diffreward.penalty import NO_PENALTY, Penalty
from diffreward.policy import Policy
from diffreward.replay import Entries, Losses, descend, path_entries
from diffreward.reward import RewardFunction


@dataclass(frozen=True)
class Inverted(Experience):
    """The paths of the samples that are in a pair.

    Args:
        states: R paths, (R, K + 1, *event).
        condition: of the R samples.
        pairs: of the R samples.
    """

    states: Tensor
    condition: Condition
    pairs: Pairs


@dataclass(frozen=True)
class InversionDPO(Algorithm[Inverted]):
    """Direct preference optimization of inverted paths.

    Args:
        beta: temperature of the preference model: half of it multiplies differences that are means
            over steps. The default is the code's 2000 for means over the 65536 dimensions of SDXL.
        reduction: differences are summed over the dimensions of a state, or averaged.
        measure: what is compared, see the module's description.
        iterations: of the inversion, per step, see `diffreward.inversion.invert`.
        pairing: all pairs of a prompt's samples, or its best against its worst.
        inner_steps: optimiser steps per round.
        penalty: distance from the reference on the paths.
    """

    beta: float = 0.03
    reduction: Reduction = "sum"
    measure: Literal["denoising", "likelihood", "derived", "released"] = "denoising"
    iterations: int = 1
    pairing: Literal["all", "extremes"] = "all"
    inner_steps: int = 1
    penalty: Penalty = NO_PENALTY

    needs_density = False
    takes_data = True

    def collect(self, policy: Policy, reward: RewardFunction, batch: Batch) -> Inverted:
        """Gather what one round needs, without gradient.

        Raises:
            ValueError: if steps without a density are to be compared by likelihood.
        """
        diffusion = policy.diffusion
        if self.measure == "likelihood" and not diffusion.stochastic_steps:
            raise ValueError(
                "InversionDPO(measure='likelihood') needs the probability of each step, and this "
                "sampler is deterministic; use a stochastic one (eta > 0)"
            )
        samples = finished_samples(policy, reward, batch, share_start=False)
        choose = all_pairs if self.pairing == "all" else best_and_worst
        pairs, rows = choose(samples.scores, samples.groups), torch.arange(len(samples.clean))
        if len(pairs.winner):
            rows, pairs = pairs.involved()
        condition = samples.condition[rows]
        with policy.reference():
            states = invert(
                diffusion,
                samples.clean[rows.to(samples.clean.device)],
                condition,
                policy.rows,
                self.iterations,
            )
        return Inverted(samples.scores, samples.groups, states, condition, pairs)

    def losses(self, policy: Policy, experience: Inverted, inner_step: int) -> Losses:
        pairs, states = experience.pairs, experience.states
        by_density = self.measure == "likelihood"
        steps = policy.diffusion.stochastic_steps if by_density else range(states.shape[1] - 1)
        # Nobody drew these paths.
        unknown = states.new_full((len(states), len(steps)), torch.nan)
        path = Trajectory(states, tuple(steps), unknown, experience.condition)
        if by_density:
            entries, sign = path_entries(policy, path), 1 / path.dimensions
        elif self.measure == "denoising":
            entries, sign = _distances(policy, path, [path.clean] * len(steps)), -1.0
        else:
            entries = _distances(policy, path, _reference_clean(policy, path))
            sign = 1.0 if self.measure == "released" else -1.0
        with policy.reference():
            before = entries.values(policy.rows)
        beta = self.beta * (path.dimensions if self.reduction == "sum" else 1)

        def objective(values: Tensor) -> Tensor:
            log_ratio = sign * (values - before).mean(1, keepdim=True)
            return preference_loss(log_ratio, pairs, beta / 2)

        return (yield from descend(policy, entries, objective, penalty=self.penalty))


def _distances(policy: Policy, path: Trajectory, clean: Sequence[Tensor]) -> Entries[Step]:
    """|clean prediction - clean[step]|^2 / (2 sigma^2), mean over dimensions."""

    def distance(step: Step, rows: Tensor, column: int) -> Tensor:
        sigma = policy.diffusion.levels[path.steps[column]].sigma
        apart = (step.clean - clean[column][rows]) / sigma
        return 0.5 * apart.square().flatten(1).mean(1)

    return path_entries(policy, path, distance)


@torch.no_grad()
def _reference_clean(policy: Policy, path: Trajectory) -> list[Tensor]:
    """What the reference predicts at each step of the path, (B, *event) each."""

    def predicted(rows: Tensor, k: int) -> Tensor:
        return policy.diffusion.step(path.states[rows, k], k, path.condition[rows]).clean

    with policy.reference():
        return [
            torch.cat([predicted(rows, k) for rows in chunks(len(path), policy.rows)])
            for k in path.steps
        ]
