"""Damage to recordings: what augmentation does, and what listeners would rate lower."""

import torch
from torch import Tensor


def damage(waves: Tensor, generator: torch.Generator) -> Tensor:
    """Recordings as other rooms, microphones and generators may give them, (B, T).

    Each gets noise of its own level and colour, a curve of its own over the frequencies, and phases
    shifted at random; some lose bits of time.

    Args:
        waves: (B, T) in [-1, 1].
        generator: draws the changes.
    """
    count, length = waves.shape
    spectrum = torch.fft.rfft(waves)
    bins = spectrum.shape[1]
    noise = torch.fft.rfft(torch.randn(waves.shape, generator=generator))
    tilt = 2 * torch.rand(count, 1, generator=generator)
    noise = noise * torch.linspace(0.02, 1, bins).pow(-tilt / 2)
    noise = noise / noise.abs().square().mean(1, keepdim=True).sqrt()
    level = spectrum.abs().square().mean(1, keepdim=True).sqrt()
    # From hardly audible to as loud as a tenth of the speech.
    ratio = 10 ** (-2 + torch.rand(count, 1, generator=generator))
    curve = _smooth(bins, 6, 6.0, count, generator)
    phases = _smooth(bins, 96, 1.0, count, generator)
    turned = spectrum * 10 ** (curve / 20) * torch.polar(torch.ones_like(phases), phases)
    heard = torch.fft.irfft(turned + ratio * level * noise, length)
    start = torch.randint(length, (count, 1), generator=generator)
    lost = torch.rand(count, 1, generator=generator).square() * length / 8
    times = torch.arange(length)
    kept = ~((times >= start) & (times < start + lost))
    return heard * kept


def _smooth(bins: int, knots: int, spread: float, count: int, generator: torch.Generator) -> Tensor:
    """Random curves over the frequencies, (count, bins), of a standard deviation at their knots."""
    values = spread * torch.randn(count, 1, knots, generator=generator)
    return torch.nn.functional.interpolate(values, bins, mode="linear", align_corners=True)[:, 0]


def noisy(waves: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """White noise, from inaudible to as loud as the speech.

    Args:
        waves: (B, T) in [-1, 1].
        severity: (B, 1) in [0, 1], here and below; 0 changes nothing.
        generator: draws what is random, here and below.
    """
    noise = torch.randn(waves.shape, generator=generator)
    level = waves.square().mean(1, keepdim=True).sqrt()
    return waves + (severity > 0) * level * 10 ** (1.5 * (severity - 1)) * noise


def clipped(waves: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """Cut off above a level, at worst a twentieth of the peak, and as loud as before."""
    limit = waves.abs().amax(1, keepdim=True) * 0.05**severity
    cut = waves.clamp(-limit, limit)
    return cut * waves.square().mean(1, keepdim=True).sqrt() / cut.square().mean(1, True).sqrt()


def muffled(waves: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """Without what lies above a frequency, from 4 kHz down to 500 Hz."""
    spectrum = torch.fft.rfft(waves)
    # Waves are at 16 kHz, so that the last bin is at 8 kHz.
    kilohertz = torch.linspace(0, 8, spectrum.shape[1])
    return torch.fft.irfft(spectrum * (kilohertz <= 4 * 8**-severity), waves.shape[1])


def interrupted(waves: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """Silent in pieces of 24 ms, at worst every second one."""
    pieces = waves.unfold(1, 384, 384)
    kept = torch.rand(pieces.shape[:2], generator=generator) >= severity / 2
    return (pieces * kept[:, :, None]).flatten(1)


DAMAGES = (noisy, clipped, muffled, interrupted)
"""What costs a recording its rating."""
