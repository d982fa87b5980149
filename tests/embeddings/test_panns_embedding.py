import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffreward.embeddings.panns import PANNs
from diffreward.random import stream
from diffreward.samples import Audio, Tokens

PROMPTS = ["", ""]
WIDTHS = [1, 4, 6, 6, 8, 8, 8]


def checkpoint(n_fft: int = 512, rate: int = 16_000) -> dict[str, Tensor]:
    """Tensors of the names in a published file, narrower, with numbers in which all count."""
    from transformers.audio_utils import mel_filter_bank

    source = stream(n_fft)
    filters = mel_filter_bank(
        n_fft // 2 + 1, 64, 50.0, rate * 7 / 16, rate, norm="slaney", mel_scale="slaney"
    )
    state = {"logmel_extractor.melW": torch.from_numpy(filters).float()}
    state["spectrogram_extractor.stft.conv_real.weight"] = torch.zeros(n_fft // 2 + 1, 1, n_fft)

    def norm(name: str, width: int, mean: float, variance: float) -> None:
        draws = torch.rand(4, width, generator=source)
        state[f"{name}.weight"], state[f"{name}.bias"] = 0.5 + draws[0], draws[1]
        state[f"{name}.running_mean"] = mean + draws[2]
        state[f"{name}.running_var"] = variance * (0.5 + draws[3])
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    norm("bn0", 64, -30.0, 100.0)
    for block, (into, out) in enumerate(itertools.pairwise(WIDTHS), start=1):
        for layer, width in (("1", into), ("2", out)):
            kernel = torch.randn(out, width, 3, 3, generator=source) / (2 * width**0.5)
            state[f"conv_block{block}.conv{layer}.weight"] = kernel
            norm(f"conv_block{block}.bn{layer}", out, -0.5, 0.5)
    state["fc1.weight"] = torch.randn(6, 8, generator=source)
    state["fc1.bias"] = torch.randn(6, generator=source)
    state["fc_audioset.weight"] = torch.zeros(3, 6)
    return state


def formula(state: dict[str, Tensor], wave: np.ndarray, n_fft: int) -> Tensor:
    """CNN14 of one sound, written from the paper's table 2 and torchlibrosa's definitions."""
    half, hop = n_fft // 2, n_fft * 5 // 16
    padded = np.pad(wave.astype(np.float64), half, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    frames = [padded[start:][:n_fft] for start in range(0, len(wave) + 1, hop)]
    power = np.abs(np.fft.rfft(np.array(frames) * window)) ** 2
    mel = power @ state["logmel_extractor.melW"].double().numpy()
    x = torch.from_numpy(10 * np.log10(np.maximum(mel, 1e-10))).float()[None, None]

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"])

    x = norm(x.transpose(1, 3), "bn0").transpose(1, 3)
    for block in range(1, 7):
        for layer in "12":
            kernel = state[f"conv_block{block}.conv{layer}.weight"]
            x = norm(F.conv2d(x, kernel, padding=1), f"conv_block{block}.bn{layer}").relu()
        x = F.avg_pool2d(x, 2) if block < 6 else x
    x = x.mean(3)[0]
    x = x.max(1).values + x.mean(1)
    return F.linear(x, state["fc1.weight"], state["fc1.bias"]).relu()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("panns") / "Cnn14_16k.pth"
    torch.save({"iteration": 3, "model": checkpoint()}, file)
    return str(file)


def noise(length: int, rate: int = 16_000) -> Audio:
    waves = torch.randn(2, 1, length, generator=stream(length))
    return Audio(waves * torch.tensor([0.3, 0.01])[:, None, None], rate)


@pytest.mark.parametrize(("n_fft", "rate"), [(256, 8_000), (512, 16_000), (1024, 32_000)])
def test_the_file_tells_the_version_and_the_layers_are_its(
    tmp_path: Path, n_fft: int, rate: int
) -> None:
    state = checkpoint(n_fft, rate)
    torch.save({"model": state}, tmp_path / "weights.pth")
    samples = noise(rate // 2, rate)
    rows = PANNs(str(tmp_path / "weights.pth"))(samples, PROMPTS)
    expected = torch.stack([formula(state, wave[0].numpy(), n_fft) for wave in samples.waves])
    assert (expected > 0).any(1).all() and (expected[0] - expected[1]).norm() > 0.1
    torch.testing.assert_close(rows, expected[:, None], rtol=1e-3, atol=1e-4)


def test_a_short_sound_is_silent_at_the_end(weights: str) -> None:
    samples = noise(700)
    padded = Audio(F.pad(samples.waves, (0, 31 * 160 - 700)), 16_000)
    rows = PANNs(weights)(samples, PROMPTS)
    assert rows.shape == (2, 1, 6)
    assert torch.equal(rows, PANNs(weights)(padded, PROMPTS))


def test_the_gradient_is_the_slope_in_a_direction(weights: str) -> None:
    embedding = PANNs(weights)
    waves = noise(8000).waves.requires_grad_()
    (gradient,) = torch.autograd.grad(embedding(Audio(waves, 16_000), PROMPTS).sum(), waves)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    step = 1e-4 * gradient / gradient.norm()
    with torch.no_grad():
        above, below = (
            embedding(Audio(waves + sign * step, 16_000), PROMPTS).double().sum()
            for sign in (1, -1)
        )
    rise = (above - below).float() / 2
    torch.testing.assert_close(rise, (gradient * step).sum(), rtol=0.05, atol=1e-6)


def test_digital_silence_has_a_finite_embedding_and_gradient(weights: str) -> None:
    waves = torch.zeros(2, 1, 8000, requires_grad=True)
    rows = PANNs(weights)(Audio(waves, 16_000), PROMPTS)
    (gradient,) = torch.autograd.grad(rows.sum(), waves)
    assert rows.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_embed_alike_and_carry_no_weights(weights: str, copied: Any) -> None:
    embedding = PANNs(weights)
    with torch.inference_mode():
        rows = embedding(noise(8000), PROMPTS)
    assert len(pickle.dumps(embedding)) < 500
    assert torch.equal(copied(embedding)(noise(8000), PROMPTS), rows)


def test_what_cannot_be_is_refused(weights: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"download Cnn14_mAP=0\.431\.pth"):
        PANNs(str(tmp_path / "nowhere.pth"))
    with pytest.raises(TypeError, match="scores Audio"):
        PANNs(weights)(Tokens(torch.zeros(1, 4, dtype=torch.int64), "ACGT"), [""])
    state = checkpoint()
    torch.save({**state, "logmel_extractor.melW": torch.zeros(5, 64)}, tmp_path / "rate.pth")
    with pytest.raises(ValueError, match=r"5 frequencies; known are those of \[129, 257, 513\]"):
        PANNs(str(tmp_path / "rate.pth"))(noise(100), PROMPTS)
    del state["fc1.weight"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other weights: \['fc1.weight'\] are missing"):
        PANNs(str(tmp_path / "other.pth"))(noise(100), PROMPTS)
    state = checkpoint()
    del state["bn0.weight"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(RuntimeError, match=r"bn0\.weight"):
        PANNs(str(tmp_path / "less.pth"))(noise(100), PROMPTS)
