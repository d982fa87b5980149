"""Sounds at the rate and with the channels that a network was trained on, differentiably.

Source: band-limited interpolation (Smith and Gossett, 1984, ICASSP) with a Kaiser window, in the
convention of torchaudio's `resample`; its parameters are those of fadtk (Gui et al., 2024,
arXiv:2311.01616), which stand for librosa's "kaiser_best".
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from diffreward.samples import Audio, Samples, audio

_ZERO_CROSSINGS = 64
"""Of the sinc on either side of its middle: the length of the filter."""
_ROLLOFF = 0.9475937167399596
"""Where the filter cuts off, as a fraction of half the lower rate."""
_BETA = 14.769656459379492
"""Shape of the Kaiser window."""


def mono(samples: Samples, rate: int) -> Tensor:
    """The mean of the channels at a rate, (B, T), float32; differentiable.

    Args:
        samples: sounds of any rate and number of channels.
        rate: samples per second.

    Raises:
        TypeError: if the samples are no sounds.
        ValueError: if the sounds have no samples.
    """
    return waves_at(samples, rate, 1).squeeze(1)


def waves_at(samples: Samples, rate: int, channels: int) -> Tensor:
    """The sounds at a rate with so many channels, (B, channels, T), float32; differentiable.

    Channels are averaged to one, one channel is repeated.

    Args:
        samples: sounds of any rate.
        rate: samples per second.
        channels: wanted.

    Raises:
        TypeError: if the samples are no sounds.
        ValueError: if the sounds have no samples, or other channels than one or those wanted.
    """
    waves = audio(samples).float()
    if waves.shape[2] == 0:
        raise ValueError(f"the sounds have no samples: their shape is {tuple(waves.shape)}")
    if channels == 1:
        waves = waves.mean(1, keepdim=True)
    if waves.shape[1] not in (1, channels):
        raise ValueError(f"wanted sounds of {channels} channels, or mono; got {waves.shape[1]}")
    return resample(waves, cast(Audio, samples).rate, rate).expand(-1, channels, -1)


def resample(waves: Tensor, rate: int, new_rate: int) -> Tensor:
    """Waves at another rate, (..., ceil(T * new_rate / rate)); differentiable, linear in the waves.

    Equal to `torchaudio.functional.resample` with a Kaiser window. Silence is assumed beyond both
    ends.

    Args:
        waves: (..., T), floating point.
        rate: samples per second.
        new_rate: those wanted.

    Raises:
        ValueError: if a rate is not positive.
    """
    if min(rate, new_rate) < 1:
        raise ValueError(f"rates are at least 1 per second, got {rate} and {new_rate}")
    if rate == new_rate:
        return waves
    divisor = math.gcd(rate, new_rate)
    stride, phases = rate // divisor, new_rate // divisor
    reach, kernels = _kernels(stride, phases)
    flat = F.pad(waves.reshape(-1, 1, waves.shape[-1]), (reach, reach + stride))
    # One filter for each place that a new sample can have between old ones, applied in turn.
    found = F.conv1d(flat, kernels.to(flat)[:, None], stride=stride).mT.flatten(1)
    length = -(-waves.shape[-1] * phases // stride)
    return found[:, :length].reshape(*waves.shape[:-1], length)


def _kernels(stride: int, phases: int) -> tuple[int, Tensor]:
    """How far a filter reaches, and the filters, (phases, 2 * reach + stride), float64."""
    cutoff = min(stride, phases) * _ROLLOFF
    reach = math.ceil(_ZERO_CROSSINGS * stride / cutoff)
    old = torch.arange(-reach, reach + stride, dtype=torch.float64) / stride
    new = torch.arange(phases, dtype=torch.float64)[:, None] / phases
    crossings = ((old - new) * cutoff).clamp(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    height = _BETA * (1 - (crossings / _ZERO_CROSSINGS) ** 2).sqrt()
    window = torch.special.i0(height) / torch.special.i0(torch.tensor(_BETA, dtype=torch.float64))
    return reach, torch.sinc(crossings) * window * (cutoff / stride)
