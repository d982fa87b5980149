"""Gradients of any function of a path's log-probabilities, in the memory of one micro-batch.

The two-pass leaf gradient: evaluate the matrix of log-probabilities l (B, S) without a graph,
backpropagate the objective to it as a leaf, then replay each step of each path with weight
dL / dl[b, s]. The sum of the replayed terms has the gradient of the objective itself, whatever the
objective; entries of weight 0 (clipped steps, samples without advantage) are not replayed at all.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from torch import Tensor

from diffreward.diffusion import Trajectory, chunks
from diffreward.policy import Policy

Objective = Callable[[Tensor], Tensor]
"""Maps log-probabilities under the policy, (B, S) in nats, to a scalar loss."""

Losses = Generator[Tensor, None, dict[str, float]]
"""Yields scalars whose gradients sum to that of the loss; returns metrics, "loss" among them.

Over several processes, names that end in "_error" are combined by maximum, others by mean.
"""


@torch.no_grad()
def log_probs(policy: Policy, path: Trajectory) -> Tensor:
    """Log p(x_{k+1} | x_k) of the path's steps under the diffusion as it is now, (B, S), nats."""
    blocks = [
        torch.stack([_log_prob(policy, path, k, rows) for k in path.steps], 1)
        for rows in chunks(len(path), policy.rows)
    ]
    return torch.cat(blocks)


def reference_log_probs(policy: Policy, path: Trajectory) -> Tensor:
    """Log p(x_{k+1} | x_k) of the path's steps under the reference, (B, S), nats."""
    with policy.reference():
        return log_probs(policy, path)


def replay(policy: Policy, path: Trajectory, objective: Objective, on_policy: bool) -> Losses:
    """Backpropagate an objective of log-probabilities through the network, step by step.

    Args:
        policy: its network gets the gradient.
        path: the recorded paths.
        objective: of the log-probabilities under the policy.
        on_policy: the weights are those that drew the path, so its recorded log-probabilities are
            the policy's and the first pass costs nothing.

    Returns:
        loss: the value of the objective.
        ratio_error: largest |log p replayed - log p of the first pass| per dimension; 0 means that
            sampling and training see the same probabilities.
        replayed: share of the (path, step) entries whose weight is not 0.
    """
    leaf = (path.log_probs if on_policy else log_probs(policy, path)).detach().requires_grad_()
    loss = objective(leaf)
    (weights,) = torch.autograd.grad(loss, leaf)
    error = 0.0
    for column, k in enumerate(path.steps):
        active = weights[:, column].nonzero().squeeze(1).cpu()
        for part in chunks(len(active), policy.rows):
            block = active[part]
            log_p = _log_prob(policy, path, k, block)
            error = max(error, float((log_p - leaf[block, column]).detach().abs().max()))
            yield (weights[block, column] * log_p).sum()
    return {
        "loss": float(loss.detach()),
        "ratio_error": error / path.dimensions,
        "replayed": float((weights != 0).float().mean()),
    }


def _log_prob(policy: Policy, path: Trajectory, k: int, rows: Tensor) -> Tensor:
    x, x_next = path.states[rows, k], path.states[rows, k + 1]
    return policy.diffusion.step(x, k, path.condition[rows]).transition.log_prob(x_next)
