import math

import numpy as np
import pytest
import torch

from diffreward.audio.resampling import mono, resample, waves_at
from diffreward.random import stream
from diffreward.samples import Audio, Tokens


def tone(rate: int, frequency: float, seconds: float = 0.5) -> torch.Tensor:
    time = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return torch.cos(2 * math.pi * frequency * time)


@pytest.mark.parametrize(("rate", "new_rate"), [(44100, 16000), (16000, 48000), (22050, 8000)])
def test_a_tone_keeps_its_frequency_amplitude_and_phase(rate: int, new_rate: int) -> None:
    resampled = resample(tone(rate, 440.0), rate, new_rate)
    middle = slice(new_rate // 8, -new_rate // 8)  # silence beyond the ends reaches in a little
    expected = tone(new_rate, 440.0)[middle]
    torch.testing.assert_close(resampled[middle], expected, rtol=0, atol=2e-6)


def test_what_the_lower_rate_cannot_hold_is_removed() -> None:
    aliased = resample(tone(48000, 9000.0), 48000, 16000)
    assert aliased[2000:-2000].abs().max() < 1e-5


def torchaudio_formula(wave: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Sample by sample, as torchaudio's documentation states it, with fadtk's parameters."""
    width, rolloff, beta = 64, 0.9475937167399596, 14.769656459379492
    divisor = math.gcd(rate, new_rate)
    rate, new_rate = rate // divisor, new_rate // divisor
    base = min(rate, new_rate) * rolloff
    length = math.ceil(len(wave) * new_rate / rate)
    out = np.zeros(length)
    for j in range(length):
        t = (np.arange(len(wave)) / rate - j / new_rate) * base
        inside = np.abs(t) < width
        window = np.i0(beta * np.sqrt(1 - (t[inside] / width) ** 2)) / np.i0(beta)
        out[j] = (np.sinc(t[inside]) * window * wave[inside]).sum() * base / rate
    return out


@pytest.mark.parametrize(("rate", "new_rate"), [(3, 2), (2, 3), (441, 160), (8, 5)])
def test_resampling_is_torchaudios_with_fadtks_parameters(rate: int, new_rate: int) -> None:
    wave = torch.randn(500, generator=stream(0), dtype=torch.float64)
    expected = torchaudio_formula(wave.numpy(), rate, new_rate)
    found = resample(wave, rate, new_rate)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize("length", [1, 7, 160, 441, 1000])
def test_the_new_length_is_rounded_up(length: int) -> None:
    found = resample(torch.ones(2, 3, length), 441, 160)
    assert found.shape == (2, 3, math.ceil(length * 160 / 441))


def test_at_the_same_rate_nothing_changes() -> None:
    waves = torch.randn(2, 1, 50, generator=stream(0))
    assert torch.equal(resample(waves, 8000, 8000), waves)


def test_the_gradient_is_that_of_a_linear_map() -> None:
    waves = torch.randn(1, 40, generator=stream(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resample(x, 3, 2), waves)


def test_rows_do_not_mix() -> None:
    waves = torch.randn(3, 2, 100, generator=stream(0))
    alone = resample(waves[1:2, 1:2], 3, 2)
    torch.testing.assert_close(resample(waves, 3, 2)[1:2, 1:2], alone)


def test_a_stereo_sound_is_mixed_down_to_the_mean_and_a_mono_one_repeated() -> None:
    left, right = torch.randn(2, 4, 1, 30, generator=stream(0))
    stereo = Audio(torch.cat([left, right], 1), 8000)
    torch.testing.assert_close(mono(stereo, 8000), (left + right)[:, 0] / 2)
    assert torch.equal(waves_at(stereo, 8000, 2), stereo.waves)
    assert torch.equal(waves_at(Audio(left, 8000), 8000, 2), torch.cat([left, left], 1))


def test_half_precision_is_computed_in_single() -> None:
    waves = torch.randn(1, 1, 100, generator=stream(0)).half()
    single = mono(Audio(waves.float(), 3), 2)
    assert torch.equal(mono(Audio(waves, 3), 2), single)


def test_what_cannot_be_resampled_is_refused() -> None:
    with pytest.raises(TypeError, match="scores Audio; the model produced Tokens"):
        mono(Tokens(torch.zeros(1, 4, dtype=torch.int64), "ACGT"), 8000)
    with pytest.raises(ValueError, match=r"no samples: their shape is \(2, 1, 0\)"):
        mono(Audio(torch.zeros(2, 1, 0), 8000), 16000)
    with pytest.raises(ValueError, match="2 channels, or mono; got 6"):
        waves_at(Audio(torch.zeros(2, 6, 9), 8000), 8000, 2)
    with pytest.raises(ValueError, match="at least 1 per second, got 8000 and 0"):
        resample(torch.zeros(9), 8000, 0)
