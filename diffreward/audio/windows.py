"""Sounds of any length as windows of one length, the same ones at every call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def covering_windows(waves: Tensor, length: int, hop: int) -> Tensor:
    """Windows that hold sound only, (B, R, length): the last one ends where the sound ends.

    Args:
        waves: (B, T), T at least `length`.
        length: of a window, in samples.
        hop: samples from the start of one window to that of the next; the last may be nearer.

    Raises:
        ValueError: if the sounds are shorter than a window.
    """
    if waves.shape[1] < length:
        raise ValueError(f"a window has {length} samples, the sounds have {waves.shape[1]}")
    windows = waves.unfold(1, length, hop)
    if (waves.shape[1] - length) % hop:
        windows = torch.cat([windows, waves[:, None, -length:]], dim=1)
    return windows


def trailing_windows(waves: Tensor, length: int, hop: int) -> Tensor:
    """Windows that begin as long as there is sound, (B, ceil(T / hop), length); then silence.

    Args:
        waves: (B, T).
        length: of a window, in samples.
        hop: samples from the start of one window to that of the next.
    """
    rows = -(-waves.shape[1] // hop)
    missing = (rows - 1) * hop + length - waves.shape[1]
    # With a hop longer than a window there may be sound that no window reaches.
    return F.pad(waves, (0, max(missing, 0))).unfold(1, length, hop)[:, :rows]


def repeat_then_pad(waves: Tensor, length: int) -> Tensor:
    """Sounds of T <= length samples, whole repetitions while they fit, then silence."""
    repeated = waves.repeat(1, length // waves.shape[1])
    return F.pad(repeated, (0, length - repeated.shape[1]))


def repeat(waves: Tensor, length: int) -> Tensor:
    """Sounds of T <= length samples, repeated until the window is full."""
    return waves.repeat(1, -(-length // waves.shape[1]))[:, :length]


def pad(waves: Tensor, length: int) -> Tensor:
    """Sounds of T <= length samples, then silence."""
    return F.pad(waves, (0, length - waves.shape[1]))
