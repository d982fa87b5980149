"""Stochastic steps between noise levels that keep the marginal laws of a diffusion.

Source: Song et al. (2021), ICLR, arXiv:2010.02502, equation 12 and section 4.1, in (alpha, sigma):
a step keeps the share rho of the predicted noise and draws the rest anew. For flows rho follows
from the score-corrected SDE with diffusion g = 3 sigma^2 of Kim et al. (2025), arXiv:2503.19385.
There, where Euler-Maruyama can draw more noise than there is, we integrate that SDE for a fixed
clean prediction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffreward.steering.drop_in.levels import Level
from diffreward.transitions import Dirac, Gaussian

_DIFFUSION = 3.0
"""The factor of sigma^2 in g, of Kim et al. (2025)."""


def bridge(
    x: Tensor, clean: Tensor, level: Level, target: Level, strength: float, flow: bool
) -> Gaussian | Dirac:
    """One step from a level to one that is not noisier, given the clean prediction there.

    Args:
        x: (B, *event), states at `level`.
        clean: (B, *event), E[clean | x]; the law has its dtype, float32 or float64.
        level: of x.
        target: of the states drawn; a step to the same level, or to one without noise, is certain.
        strength: in [0, 1]. 0 is the deterministic step (DDIM, or Euler of a flow); 1 is the
            posterior of DDPM or, for flows, g = 3 sigma^2.
        flow: whether the levels are those of a flow, alpha = 1 - sigma.

    Raises:
        ValueError: if the target is noisier than the level, or the strength out of range.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is in [0, 1], got {strength}")
    if target.noise_to_signal > level.noise_to_signal:
        raise ValueError(f"cannot step from {level} to {target}, which is noisier: see renoise")
    x = x.to(clean.dtype)
    if target == level:
        return Dirac(x)
    noise = (x - level.alpha * clean) / level.sigma
    kept, drawn = (_kept_by_flow if flow else _kept_by_ddim)(level, target, strength)
    return _law(target.alpha * clean + kept * noise, drawn)


def renoise(x: Tensor, level: Level, target: Level) -> Gaussian | Dirac:
    """The forward law of states at a level that is not less noisy, given states x at this one.

    Args:
        x: (B, *event), float32 or float64.
        level: of x.
        target: of the states drawn.

    Raises:
        ValueError: if the target is less noisy than the level.
    """
    if target == level:
        return Dirac(x)
    if target.noise_to_signal < level.noise_to_signal:
        raise ValueError(f"cannot add noise to {level} and arrive at {target}, which has less")
    # From pure noise to pure noise nothing is kept: the ratio of two vanishing signals is free.
    kept = target.alpha / level.alpha if level.alpha > 0 else 0.0
    return _law(kept * x, math.sqrt(max(0.0, target.sigma**2 - (kept * level.sigma) ** 2)))


def _kept_by_ddim(level: Level, target: Level, strength: float) -> tuple[float, float]:
    shared = level.alpha * target.sigma / (target.alpha * level.sigma)
    drawn = strength * target.sigma * math.sqrt(max(0.0, 1 - shared**2))
    return math.sqrt(target.sigma**2 - drawn**2), drawn


def _kept_by_flow(level: Level, target: Level, strength: float) -> tuple[float, float]:
    # The noise prediction over sigma is an Ornstein-Uhlenbeck process: rho = exp(-the integral of
    # g^2 / 2 sigma^2 from the target to the level).
    decay = (strength * _DIFFUSION) ** 2 * (level.sigma**3 - target.sigma**3) / 6
    # New noise has the size of the level that it leaves, as in Euler-Maruyama: this makes up for
    # the spread of clean samples around their prediction. It is never more than the target has.
    drawn = min(target.sigma, level.sigma * math.sqrt(-math.expm1(-2 * decay)))
    return target.sigma * math.exp(-decay), drawn


def _law(mean: Tensor, std: float) -> Gaussian | Dirac:
    if std == 0:
        return Dirac(mean)
    return Gaussian(mean, torch.full((len(mean),), std, dtype=mean.dtype, device=mean.device))
