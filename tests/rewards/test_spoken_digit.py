"""The judge of the speech pipeline."""

import math
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffreward.audio.mel import mel_decibels
from diffreward.conformance import check_reward
from diffreward.rewards.spoken_digit import (
    SpokenDigit,
    SpokenDigitClassifier,
    SpokenWords,
    load_spoken_digit_classifier,
)
from diffreward.samples import Audio, Images

ASSETS = Path(__file__).parents[2] / "assets"
FOLDER = ASSETS / "speech-classifier"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture
def reward() -> SpokenDigit:
    return SpokenDigit(str(FOLDER))


@pytest.fixture(scope="module")
def recordings() -> tuple[Audio, Tensor, Tensor]:
    """Takes that neither the judge nor the pipeline has seen: sounds, digits and speakers."""
    stored = load_file(ASSETS / "speech-exemplars/all.safetensors")
    sounds = Audio(stored["waves"][:20, None].float() / 32768, int(stored["rate"]))
    return sounds, stored["digits"][:20], stored["speakers"][:20]


def prompts_of(digits: Tensor) -> list[str]:
    return [DIGITS[digit] for digit in digits.tolist()]


def test_the_score_is_the_logarithm_of_a_probability(
    reward: SpokenDigit, recordings: tuple[Audio, Tensor, Tensor]
) -> None:
    sounds = recordings[0][:3]
    scores = torch.stack([reward(sounds, [digit] * 3) for digit in DIGITS])
    assert (scores <= 0).all()
    torch.testing.assert_close(scores.exp().sum(0), torch.ones(3))


def test_a_named_speaker_adds_its_own_log_probability(
    reward: SpokenDigit, recordings: tuple[Audio, Tensor, Tensor]
) -> None:
    sounds = recordings[0][:1]
    speakers = load_spoken_digit_classifier(str(FOLDER)).words.speakers
    asked = [f"two, {name}" for name in speakers]
    both = torch.cat([reward(sounds, [prompt]) for prompt in asked])
    extra = both - reward(sounds, ["two"])
    assert extra.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_recordings_are_understood(
    reward: SpokenDigit, recordings: tuple[Audio, Tensor, Tensor]
) -> None:
    sounds, digits, _ = recordings
    right = reward(sounds, prompts_of(digits))
    wrong = reward(sounds, prompts_of((digits + 1) % 10))
    assert (right > math.log(0.5)).float().mean() > 0.9
    assert (right > wrong).float().mean() > 0.9


def test_loudness_and_rate_hardly_matter(
    reward: SpokenDigit, recordings: tuple[Audio, Tensor, Tensor]
) -> None:
    sounds, digits, _ = recordings
    prompts = prompts_of(digits)
    usual = reward(sounds, prompts)
    torch.testing.assert_close(reward(Audio(0.25 * sounds.waves, 8000), prompts), usual)
    doubled = 2 * torch.fft.irfft(torch.fft.rfft(sounds.waves), 2 * sounds.waves.shape[2])
    assert (reward(Audio(doubled, 16000), prompts) - usual).abs().median() < 0.05


def test_the_spectrogram_of_a_tone_has_one_band(reward: SpokenDigit) -> None:
    network = load_spoken_digit_classifier(str(FOLDER))
    times = torch.arange(4096) / 8000
    tone = torch.sin(2 * math.pi * 1000 * times)[None]
    levels = mel_decibels(tone, network.filters, 80)[0, 20]
    centres = 700 * (torch.linspace(*_mels(100, 3800), 42)[1:-1].exp() - 1)
    assert levels.argmax() == (centres - 1000).abs().argmin()


def _mels(low: float, high: float) -> tuple[float, float]:
    return math.log1p(low / 700), math.log1p(high / 700)


def test_a_small_step_up_the_gradient_raises_the_score() -> None:
    torch.manual_seed(0)
    network = SpokenDigitClassifier(SpokenWords(DIGITS, ("a", "b")), 4).double().eval()
    waves = torch.randn(2, 4000, dtype=torch.float64, requires_grad=True)
    score = network(waves)[0].log_softmax(1)[:, 3].sum()
    (gradient,) = torch.autograd.grad(score, waves)
    step = 1e-4 * gradient / gradient.norm()
    after = network(waves.detach() + step)[0].log_softmax(1)[:, 3].sum()
    assert after.item() - score.item() == pytest.approx((gradient * step).sum().item(), rel=0.05)


def test_the_reward_keeps_its_contract(
    reward: SpokenDigit, recordings: tuple[Audio, Tensor, Tensor]
) -> None:
    check_reward(reward, recordings[0][:4], ["one", "two, theo", "Three", "nine, lucas"])


def test_the_waves_get_a_gradient(
    reward: SpokenDigit, recordings: tuple[Audio, Tensor, Tensor]
) -> None:
    waves = recordings[0].waves[:2].clone().requires_grad_()
    reward(Audio(waves, 8000), ["one", "two"]).sum().backward()
    assert waves.grad is not None
    assert waves.grad.isfinite().all() and (waves.grad != 0).any()


def test_digital_silence_has_a_score_and_a_finite_gradient(reward: SpokenDigit) -> None:
    waves = torch.zeros(1, 1, 8000, requires_grad=True)
    scores = reward(Audio(waves, 16000), ["one"])
    scores.sum().backward()
    assert scores.isfinite().all() and waves.grad is not None and waves.grad.isfinite().all()


def test_a_pickled_reward_loads_its_model_again(
    reward: SpokenDigit, recordings: tuple[Audio, Tensor, Tensor]
) -> None:
    sounds = recordings[0][:2]
    before = reward(sounds, ["one", "two"])
    content = pickle.dumps(reward)
    assert len(content) < 1000
    torch.testing.assert_close(pickle.loads(content)(sounds, ["one", "two"]), before)


@pytest.mark.parametrize(
    "prompt", ["", "a cat", "seven eight", "seven, anna", "george", "seven!?, lucas, theo"]
)
def test_a_foreign_prompt_is_named(reward: SpokenDigit, prompt: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(prompt))):
        reward(Audio(torch.zeros(1, 1, 4000), 8000), [prompt])


def test_a_missing_folder_is_named_at_once() -> None:
    with pytest.raises(FileNotFoundError, match="no/such/folder"):
        SpokenDigit("no/such/folder")


def test_pictures_are_refused(reward: SpokenDigit) -> None:
    with pytest.raises(TypeError, match="scores Audio"):
        reward(Images(torch.zeros(1, 3, 4, 4)), ["one"])
