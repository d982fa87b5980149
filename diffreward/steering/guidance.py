"""The reward's gradient as a proposal: particles move where the reward grows.

Source: DAS, Kim et al. (2025), ICLR, arXiv:2501.05803, equation 13: the proposal is the step's law
tilted by the linear part of the log-potential at the state that is left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffreward.random import Source
from diffreward.reward import RewardError, RewardFunction, name_of
from diffreward.transitions import Transition


def gradient(rewards: Tensor, at: Tensor, reward: RewardFunction) -> Tensor:
    """The gradient of each reward with respect to its own state, shaped as `at`.

    Where the reward failed (NaN), or the gradient is not finite, it is zero: such a particle dies
    or moves on its own.

    Args:
        rewards: (n,), a function of `at`, row by row.
        at: leaf, (n, *event).
        reward: for the message.

    Raises:
        RewardError: if the rewards carry no gradient.
    """
    if not rewards.requires_grad:
        raise RewardError(
            f"{name_of(reward)} carries no gradient, which guidance needs: use a differentiable "
            "reward, or a method without guidance (FKSteering, SVDD, BestOfN)"
        )
    known = rewards.masked_fill(rewards.isnan(), 0.0)
    (found,) = torch.autograd.grad(known.sum(), at)
    return torch.where(found.isfinite(), found, 0.0)


def move(law: Transition, push: Tensor | None, source: Source) -> tuple[Tensor, Tensor]:
    """Draw the next states, and what that adds to their log-weights.

    Args:
        law: of the model's own step.
        push: the gradient of the log-potential at the states that are left, or None.
        source: one generator per particle, or one for all.

    Returns:
        The states (n, *event), and log p - log q of the move, (n,), in nats.
    """
    proposal = law if push is None else law.tilted(push)
    x = proposal.sample(source)
    if proposal is law:
        return x, torch.zeros(len(x), dtype=torch.float64)
    return x, (law.log_prob(x) - proposal.log_prob(x)).double()
