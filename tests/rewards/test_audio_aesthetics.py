"""The head that rates sounds."""

import math
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffreward.conformance import check_reward
from diffreward.embeddings.clap import ClapEmbedding
from diffreward.rewards.audio_aesthetics import AudioAesthetics
from diffreward.samples import Audio, Samples, audio

ASSETS = Path(__file__).parents[2] / "assets"


def halves(samples: Samples, prompts: Sequence[str]) -> Tensor:
    """Two rows of each sound, (B, 2, 2): mean and mean square of each half."""
    waves = audio(samples).mean(1).unflatten(1, (2, -1))
    return torch.stack([waves.mean(2), waves.square().mean(2)], dim=2)


@pytest.fixture
def sounds() -> Audio:
    return Audio(torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(0)), 16000)


def write(file: Path, *shapes: tuple[int, int]) -> str:
    generator = torch.Generator().manual_seed(1)
    state = {}
    for i, (outputs, inputs) in enumerate(shapes):
        state[f"{i}.weight"] = torch.randn(outputs, inputs, generator=generator)
        state[f"{i}.bias"] = torch.randn(outputs, generator=generator)
    save_file(state, file)
    return str(file)


def test_one_layer_is_an_affine_map_of_the_mean_row(tmp_path: Path, sounds: Audio) -> None:
    head = write(tmp_path / "head.safetensors", (1, 2))
    state = load_file(head)
    waves = sounds.waves[:, 0]
    mean = torch.stack([waves.mean(1), waves.square().mean(1)], dim=1)
    expected = mean @ state["0.weight"][0] + state["0.bias"]
    torch.testing.assert_close(AudioAesthetics(halves, head)(sounds, [""] * 3), expected)


def test_hidden_layers_are_gelu(tmp_path: Path, sounds: Audio) -> None:
    head = write(tmp_path / "head.safetensors", (3, 2), (1, 3))
    state = load_file(head)
    hidden = halves(sounds, []).mean(1) @ state["0.weight"].T + state["0.bias"]
    activated = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    expected = activated @ state["1.weight"][0] + state["1.bias"]
    torch.testing.assert_close(AudioAesthetics(halves, head)(sounds, [""] * 3), expected)


def test_the_reward_keeps_its_contract(tmp_path: Path, sounds: Audio) -> None:
    head = write(tmp_path / "head.safetensors", (3, 2), (1, 3))
    check_reward(AudioAesthetics(halves, head), sounds, ["a", "b", "c"])


def test_the_waves_get_a_gradient(tmp_path: Path, sounds: Audio) -> None:
    head = write(tmp_path / "head.safetensors", (1, 2))
    waves = sounds.waves.clone().requires_grad_()
    AudioAesthetics(halves, head)(Audio(waves, 16000), [""] * 3).sum().backward()
    assert waves.grad is not None and (waves.grad != 0).all()


@pytest.mark.parametrize(
    "shapes, message",
    [([(3, 2), (1, 4)], "shapes"), ([(2, 2)], "shapes"), ([], "expected 0.weight")],
)
def test_layers_that_do_not_fit_are_refused(
    tmp_path: Path, shapes: list[tuple[int, int]], message: str
) -> None:
    head = write(tmp_path / "head.safetensors", *shapes)
    with pytest.raises(ValueError, match=message):
        AudioAesthetics(halves, head)


def test_a_head_for_another_embedding_is_refused(tmp_path: Path, sounds: Audio) -> None:
    head = write(tmp_path / "head.safetensors", (1, 5))
    with pytest.raises(ValueError, match="takes 5 numbers, got 2"):
        AudioAesthetics(halves, head)(sounds, [""] * 3)


def test_a_missing_head_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        AudioAesthetics(halves, str(tmp_path / "none.safetensors"))


def test_the_bundled_head_prefers_clean_recordings() -> None:
    clap = ClapEmbedding(str(ASSETS / "speech-clap"))
    reward = AudioAesthetics(clap, str(ASSETS / "speech-clap/aesthetics.safetensors"))
    stored = load_file(ASSETS / "speech-exemplars/all.safetensors")
    waves = stored["waves"][:20, None].float() / 32768
    noise = torch.randn(waves.shape, generator=torch.Generator().manual_seed(0))
    noisy = waves + waves.square().mean(2, keepdim=True).sqrt() * noise
    clean, worse = (reward(Audio(w, int(stored["rate"])), [""] * 20) for w in (waves, noisy))
    assert (clean > worse).float().mean() > 0.9
    assert clean.mean() > worse.mean() + 1
    copy = pickle.loads(pickle.dumps(reward))
    torch.testing.assert_close(copy(Audio(waves, 8000), [""] * 20), clean)
