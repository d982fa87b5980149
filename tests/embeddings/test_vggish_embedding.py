import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffreward.audio.mel import vggish_patches
from diffreward.audio.resampling import resample
from diffreward.embeddings.vggish import VGGish
from diffreward.random import stream
from diffreward.samples import Audio, Tokens

PROMPTS = ["", ""]


class Published(nn.Module):
    """The layers as torchvggish has them, of other widths."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        into = 1
        for width in [2, 0, 3, 0, 4, 4, 0, 5, 5, 0]:
            if width == 0:
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(into, width, 3, padding=1), nn.ReLU()]
                into = width
        self.features = nn.Sequential(*layers)
        dense = [nn.Linear(5 * 4 * 6, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU()]
        self.embeddings = nn.Sequential(*dense, nn.Linear(9, 7), nn.ReLU())

    def forward(self, patches: Tensor) -> Tensor:
        channels_last = self.features(patches[:, None]).permute(0, 2, 3, 1)
        return self.embeddings[:-1](channels_last.reshape(len(patches), -1))


@pytest.fixture(scope="module")
def published() -> Published:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Published().requires_grad_(False)
    for parameter in network.parameters():
        parameter *= 2  # what comes at random makes all sounds alike
    return network


@pytest.fixture(scope="module")
def weights(published: Published, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("vggish") / "vggish.pth"
    torch.save(published.state_dict(), file)
    return str(file)


def noise(length: int, rate: int = 16_000) -> Audio:
    waves = torch.randn(2, 1, length, generator=stream(length))
    return Audio(waves * torch.tensor([0.3, 0.01])[:, None, None], rate)


def test_the_layers_are_those_of_the_published_file(published: Published, weights: str) -> None:
    samples = noise(40_000)
    rows = VGGish(weights)(samples, PROMPTS)
    expected = published(vggish_patches(samples.waves[:, 0]).flatten(0, 1)).reshape(2, 2, 7)
    assert rows.shape == (2, 2, 7) and (expected < 0).any()
    torch.testing.assert_close(rows, expected)
    torch.testing.assert_close(VGGish(weights, rectified=True)(samples, PROMPTS), expected.relu())


def test_other_rates_are_brought_to_its_own(weights: str) -> None:
    samples = noise(44_100, 44_100)
    waves = resample(samples.waves, 44_100, 16_000)
    rows = VGGish(weights)(samples, PROMPTS)
    torch.testing.assert_close(rows, VGGish(weights)(Audio(waves, 16_000), PROMPTS))


def test_a_short_sound_has_a_row(weights: str) -> None:
    assert VGGish(weights)(noise(100), PROMPTS).shape == (2, 1, 7)


def test_the_gradient_is_the_slope_in_a_direction(weights: str) -> None:
    embedding = VGGish(weights)
    waves = noise(16_000).waves.requires_grad_()
    (gradient,) = torch.autograd.grad(embedding(Audio(waves, 16_000), PROMPTS).sum(), waves)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        above, below = (
            embedding(Audio(waves + sign * step, 16_000), PROMPTS).double().sum()
            for sign in (1, -1)
        )
    rise = (above - below).float() / 2
    torch.testing.assert_close(rise, (gradient * step).sum(), rtol=0.05, atol=1e-7)


def test_the_first_call_in_inference_mode_spoils_nothing(weights: str) -> None:
    embedding = VGGish(weights)
    with torch.inference_mode():
        embedding(noise(16_000), PROMPTS)
    waves = noise(16_000).waves.requires_grad_()
    embedding(Audio(waves, 16_000), PROMPTS).sum().backward()
    assert waves.grad is not None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_embed_alike_and_carry_no_weights(weights: str, copied: Any) -> None:
    embedding = VGGish(weights)
    rows = embedding(noise(16_000), PROMPTS)
    assert len(pickle.dumps(embedding)) < 500
    assert torch.equal(copied(embedding)(noise(16_000), PROMPTS), rows)


def test_what_cannot_be_is_refused(weights: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"vggish-10086976\.pth from the releases"):
        VGGish(str(tmp_path / "nowhere.pth"))
    with pytest.raises(TypeError, match="scores Audio"):
        VGGish(weights)(Tokens(torch.zeros(1, 4, dtype=torch.int64), "ACGT"), [""])
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other weights: \['features.0.weight'"):
        VGGish(str(tmp_path / "other.pth"))(noise(100), PROMPTS)
