"""Potentials: how the rewards along a path add up to the score that weighs a particle.

A particle's score starts at the first reward that it gets, follows the potential at every later
one, and ends at the reward of the finished sample; its log-weight is `scale` times the score. So
the weights of a whole path telescope to exp(scale * final reward), whatever the potential was and
whatever sign the rewards have: potentials differ in variance only.

Source: Singhal et al. (2025), ICML, arXiv:2501.06848, section 3.2. The released code starts the
score at 0, which makes `maximum` blind to negative rewards.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Potential = Callable[[Tensor, Tensor], Tensor]
"""Maps the scores (n,) and the new rewards (n,) to the new scores (n,)."""


def difference(score: Tensor, reward: Tensor) -> Tensor:
    """The last reward: weights follow the present prediction."""
    return reward


def maximum(score: Tensor, reward: Tensor) -> Tensor:
    """The best reward so far: a passing dip costs nothing."""
    return torch.maximum(score, reward)


def total(score: Tensor, reward: Tensor) -> Tensor:
    """The sum of the rewards so far: particles that were good early are favoured."""
    return score + reward
