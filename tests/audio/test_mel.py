import math

import numpy as np
import pytest
import torch

from diffreward.audio.mel import mel_decibels, vggish_patches
from diffreward.random import stream


def sounds(n: int, length: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Coloured noise of many levels, so that loud and faint bands occur."""
    waves = torch.randn(n, length, generator=stream(n, length), dtype=torch.float64).cumsum(1)
    waves = waves - waves.mean(1, keepdim=True)
    levels = torch.logspace(0, -3, n, dtype=torch.float64)[:, None]
    return (levels * waves / waves.abs().amax(1, keepdim=True)).to(dtype)


# The extractor computes in float64 and rounds to float32: 4e-6 dB at 64 to 128 dB.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 5e-6), (torch.float32, 0.1)])
@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
def test_decibels_are_those_of_the_feature_extractor_of_clap(
    dtype: torch.dtype, tolerance: float, truncation: str
) -> None:
    from transformers import ClapFeatureExtractor

    extractor = ClapFeatureExtractor(frequency_min=50, truncation=truncation, max_length_s=2)
    waves = sounds(3, 96_000)
    expected = [
        extractor(wave.numpy(), sampling_rate=48_000)["input_features"][0][0] for wave in waves
    ]
    fused = truncation == "fusion"
    filters = extractor.mel_filters if fused else extractor.mel_filters_slaney
    found = mel_decibels(waves.to(dtype), torch.from_numpy(filters), 480)
    assert found.shape == (3, 201, 64) and found.dtype == dtype
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=0, atol=tolerance)


def test_a_tone_of_known_amplitude_has_its_level_in_its_band() -> None:
    # 16 periods in a Hann window: its bin holds amplitude * sum(window) / 2 = 0.5 * 32 = 16.
    wave = torch.cos(2 * math.pi * torch.arange(640, dtype=torch.float64) / 8)[None]
    filters = torch.zeros(65, 1, dtype=torch.float64)
    filters[16] = 1
    levels = mel_decibels(wave, filters, 64)[0, 2:-2, 0]
    expected = torch.full_like(levels, 10 * math.log10(32**2))
    torch.testing.assert_close(levels, expected, rtol=0, atol=1e-9)


def test_digital_silence_lies_at_the_floor_and_has_no_gradient() -> None:
    waves = torch.zeros(1, 640, requires_grad=True)
    levels = mel_decibels(waves, torch.ones(65, 3), 64)
    assert torch.equal(levels, torch.full((1, 11, 3), -100.0))
    (gradient,) = torch.autograd.grad(levels.sum(), waves)
    assert torch.equal(gradient, torch.zeros_like(waves))


def test_decibels_are_differentiable() -> None:
    waves = sounds(1, 40).requires_grad_()
    filters = torch.rand(9, 2, generator=stream(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: mel_decibels(x, filters, 8), waves)


def vggish_formula(wave: np.ndarray) -> np.ndarray:
    """The examples of one sound as Hershey et al.'s code defines them, frame by frame."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)

    def mel(hertz: np.ndarray) -> np.ndarray:
        return 1127 * np.log(1 + hertz / 700)

    edges = np.linspace(mel(np.array(125.0)), mel(np.array(7500.0)), 66)
    bins = mel(np.linspace(0, 8000, 257))
    weights = np.zeros((257, 64))
    for band, (low, centre, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
        weights[:, band] = np.maximum(0, np.minimum(rising, falling))
    weights[0] = 0
    count = 1 + (len(wave) - 400) // 160
    frames = [np.abs(np.fft.rfft(wave[160 * i :][:400] * window, 512)) for i in range(count)]
    levels = np.log(np.array(frames) @ weights + 0.01)
    return np.array([levels[96 * i :][:96] for i in range(count // 96)])


@pytest.mark.parametrize("length", [15_600, 16_000, 30_959, 30_960, 50_000])
def test_patches_are_those_of_vggish(length: int) -> None:
    waves = sounds(2, length)
    found = vggish_patches(waves)
    expected = np.stack([vggish_formula(wave.numpy()) for wave in waves])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-11)


def test_a_sound_too_short_for_a_patch_is_silent_at_the_end() -> None:
    waves = sounds(1, 5000)
    padded = torch.cat([waves, torch.zeros(1, 15_600 - 5000, dtype=waves.dtype)], 1)
    assert torch.equal(vggish_patches(waves), vggish_patches(padded))


def test_silence_gives_vggish_finite_levels_and_gradients() -> None:
    waves = torch.zeros(1, 16_000, requires_grad=True)
    patches = vggish_patches(waves)
    torch.testing.assert_close(patches, torch.full((1, 1, 96, 64), math.log(0.01)))
    (gradient,) = torch.autograd.grad(patches.sum(), waves)
    assert gradient.isfinite().all()
