"""DDPO: denoising diffusion policy optimization.

Source: Black et al. (2024), ICLR, arXiv:2305.13301, section 4.3 (the importance-sampled estimator
with PPO's clipping). Denoising is a Markov decision process whose action at step k is x_{k+1}; the
advantage of a finished sample is given to all its actions. With `reduction="mean"` probabilities
are per dimension, as in the authors' code, and their clip range of 1e-4 means what it means there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffreward.algorithm import Algorithm, Batch, Experience, scored_rollout
from diffreward.feedback import Scale, advantages
from diffreward.policy import Policy
from diffreward.replay import Losses, replay
from diffreward.reward import RewardFunction


@dataclass(frozen=True)
class DDPO(Algorithm[Experience]):
    """Policy gradient on denoising steps.

    Args:
        clip: a step whose probability ratio leaves [1 - clip, 1 + clip] gets no further push.
        advantage_clip: largest absolute advantage.
        scale: what advantages are divided by, see `diffreward.feedback.advantages`.
        reduction: log-probabilities are summed over the dimensions of a state, or averaged.
        step_fraction: share of the steps of each path, drawn anew per round, that is trained on.
        share_start: samples of a prompt start from the same noise.
        inner_steps: optimiser steps per round.
    """

    clip: float = 1e-4
    advantage_clip: float = 5.0
    scale: Scale = "group"
    reduction: Literal["mean", "sum"] = "mean"
    step_fraction: float = 1.0
    share_start: bool = False
    inner_steps: int = 1

    def collect(self, policy: Policy, reward: RewardFunction, batch: Batch) -> Experience:
        return scored_rollout(policy, reward, batch, self.share_start, self.step_fraction)

    def losses(self, policy: Policy, experience: Experience, inner_step: int) -> Losses:
        path = experience.path
        advantage = advantages(experience.scores, experience.groups, self.scale)
        advantage = advantage.clamp(-self.advantage_clip, self.advantage_clip)
        unit = path.dimensions if self.reduction == "mean" else 1

        def objective(log_p: Tensor) -> Tensor:
            log_ratio = (log_p - path.log_probs) / unit
            return clipped_policy_gradient(log_ratio, advantage, self.clip)

        return (yield from replay(policy, path, objective, on_policy=inner_step == 0))


def clipped_policy_gradient(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's surrogate: mean over samples and steps of max(-A ratio, -A clipped ratio).

    Args:
        log_ratio: log p_policy - log p_old of each step, (B, S).
        advantage: (B,).
        clip: half width of the interval around 1 that ratios are clipped to.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(-advantage[:, None] * ratio, -advantage[:, None] * clipped).mean()
