"""DRAKES: reward backpropagation through discrete diffusion, held by the KL of paths.

Source: Wang et al. (2025), ICLR, arXiv:2410.13643, and the authors' code. The objective is
E[r] - alpha KL(path || reference path), whose optimum ends in the reference's law tilted by
exp(r / alpha). The first steps are drawn without a graph; the last ones are relaxed draws through
which the reward's gradient goes back (`diffreward.unmasking.Unmasking` has the relaxations). On
continuous families the same file is DRaFT with the KL.

The gradient of a relaxed draw is biased, and the KL of a step without a graph counts in that step
only, not in what led there: nothing here claims to reach the optimum.

`as_released` is the regulariser of the released code, for comparison. With the relaxation
"released", the final time 1e-5 and a scheduler's epsilon of 1e-3 the gradient is that of their
code, whose alpha is ours times the fall of the masked share in a step, 1 / 128 of it for DNA.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffreward.algorithm import Algorithm, Batch
from diffreward.diffusion import Diffusion, Step, Trajectory, rollout
from diffreward.pathwise import Underway, ascend
from diffreward.penalty import Penalty
from diffreward.policy import Policy
from diffreward.replay import Losses, descend_sum, path_entries
from diffreward.reward import RewardFunction
from diffreward.unmasking import Unmasking

_PATH_KL = Penalty("kl", 0.128, "sum")


@dataclass(frozen=True)
class Followed(Underway):
    """Chains at the step from which on they are differentiated, and how they came there.

    Args:
        past: the steps without a graph.
        share: of the penalty's weight, in this round.
    """

    past: Trajectory
    share: float


@dataclass(frozen=True)
class DRAKES(Algorithm[Followed]):
    """The gradients of the reward through the last steps, and of the KL of all steps.

    Args:
        last_steps: with a graph; all if not given. (The paper: 50 of 128 for DNA.)
        penalty: alpha is its weight, in units of reward per nat of a path's KL. The default is the
            paper's 0.001 for DNA, which their code multiplies by a sum that lacks the factor 1/128.
        warmup: rounds over which the penalty's weight rises to its value.
        as_released: the regulariser of the released code, and none on steps without a graph.
        checkpointing: keep no activations of the network, at the cost of one more evaluation per
            step with a graph.
        inner_steps: optimiser steps per round, on the same noise.

    Raises:
        ValueError: if last_steps is below 1 or warmup below 0, the penalty is a mean, or a budget
            adapts the weight that a warm-up sets.
    """

    last_steps: int | None = None
    penalty: Penalty = _PATH_KL
    warmup: int = 0
    as_released: bool = False
    checkpointing: bool = True
    inner_steps: int = 1

    needs_density = False
    group_size = 1

    def __post_init__(self) -> None:
        if self.warmup < 0 or (self.last_steps is not None and self.last_steps < 1):
            raise ValueError(
                f"last_steps is at least 1 and warmup 0, got {self.last_steps} and {self.warmup}"
            )
        if self.penalty.weight and self.penalty.reduction != "sum":
            raise ValueError("the KL of DRAKES is that of paths: the penalty's reduction is 'sum'")
        if self.warmup and self.penalty.budget is not None and self.penalty.over_budget == "adapt":
            raise ValueError("a penalty's weight is set by a warm-up or adapted to a budget")

    def collect(self, policy: Policy, reward: RewardFunction, batch: Batch) -> Followed:
        diffusion, noise = policy.diffusion, batch.streams("steps")
        total = diffusion.num_steps
        first = 0 if self.last_steps is None else max(0, total - self.last_steps)
        condition, start = diffusion.encode(batch.repeated()), batch.streams("start")
        past = rollout(diffusion, condition, start, noise, policy.rows, until=first)
        unknown = torch.full((len(past),), torch.nan, device=past.clean.device)
        chains = Underway(
            scores=unknown,
            groups=batch.groups.to(unknown.device),
            states=past.clean,
            steps=range(first, total),
            noise=noise,
            condition=condition,
            reward=reward,
        )
        share = batch.update / self.warmup if batch.update < self.warmup else 1.0
        return Followed(**vars(chains), past=past, share=share)

    def losses(self, policy: Policy, experience: Followed, inner_step: int) -> Losses:
        penalty = replace(self.penalty, weight=self.penalty.weight * experience.share)
        along = _Released(**vars(penalty)) if self.as_released else penalty
        metrics = yield from ascend(
            policy, experience, checkpointing=self.checkpointing, penalty=along
        )
        past = experience.past
        if penalty.weight and past.steps and not self.as_released:
            nothing = torch.zeros(len(past), len(past.steps), device=past.clean.device)
            before = yield from descend_sum(policy, path_entries(policy, past), nothing, penalty)
            metrics["penalty"] += before["penalty"]
        return metrics


class _Released(Penalty):
    """What the authors' code takes for the KL of a step; not a divergence.

    It weights terms by the symbols that are there in place of the mask: 0 at hard states, where
    either the mask or the divergence is missing.
    """

    def between_steps(self, ours: Step, theirs: Step, diffusion: Diffusion, k: int) -> Tensor:
        law, other = ours.transition, theirs.transition
        if not (isinstance(law, Unmasking) and isinstance(other, Unmasking)):
            raise TypeError(
                f"as_released is about masked diffusion; the steps here are {type(law).__name__}"
            )
        if law.state.ndim == 2:
            return torch.zeros(len(law.state), device=law.state.device)
        log_p, log_q = (each.logits[..., :-1].log_softmax(-1) for each in (law, other))
        p, q = log_p.exp(), log_q.exp()
        symbols, mask = law.state[..., :-1], law.state[..., -1:]
        masked = law.state.argmax(-1, keepdim=True) == symbols.shape[-1]
        # Their sum lacks the length of a step: of what is masked, this share is revealed in it.
        share = law.logits.detach().softmax(-1)[..., :-1].sum(-1, keepdim=True)
        terms = share * (1 - mask) * symbols * (q - p + p * (log_p - log_q))
        return (masked * terms).flatten(1).sum(1)
