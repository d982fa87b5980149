import copy
import logging
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_clip
import torch
import torch.nn.functional as F
from tiny_clip import PROMPTS, noise
from torch import Tensor

from diffreward.conformance import check_reward
from diffreward.rewards.hps import HPS, whole_image
from diffreward.samples import Images, Tokens

MODEL = "tiny-hps"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of both versions, in half precision and under the names that the hub has."""
    import open_clip

    path = tmp_path_factory.mktemp("hps")
    tiny_clip.open_clip_config(path, MODEL)
    for seed, name in enumerate(["HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt"]):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = tiny_clip.spread_out(open_clip.create_model(MODEL))
        torch.save({"state_dict": model.half().state_dict(), "epoch": 1}, path / name)
    return str(path)


def torchvision_inputs(samples: Images, size: int, antialias: bool) -> Tensor:
    """The inputs by torchvision's transforms, an image at a time."""
    transforms = pytest.importorskip("torchvision.transforms.v2.functional")
    rows = []
    for image in samples.pil():
        pixels = transforms.to_dtype(transforms.to_image(image), torch.float32, scale=True)
        scale = size / max(image.size)
        height, width = round(image.height * scale), round(image.width * scale)
        bicubic = transforms.InterpolationMode.BICUBIC
        pixels = transforms.resize(pixels, [height, width], bicubic, antialias=antialias)
        above, left = (size - height) // 2, (size - width) // 2
        margins = [left, above, size - width - left, size - height - above]
        pixels = transforms.pad(pixels, margins)
        mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
        rows.append(transforms.normalize(pixels, mean, std))
    return torch.stack(rows)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (70, 41), (50, 101), (20, 11)])
def test_images_are_prepared_as_by_torchvision(height: int, width: int, antialias: bool) -> None:
    samples = noise(2, height, width)
    found = whole_image(samples.pixels, 32, antialias)
    assert found.shape == (2, 3, 32, 32)
    torch.testing.assert_close(found, torchvision_inputs(samples, 32, antialias), rtol=0, atol=1e-5)


def test_nothing_is_cut_off_and_the_margin_is_black() -> None:
    white = torch.ones(1, 3, 40, 20)
    found = whole_image(white, 32)
    black = whole_image(torch.zeros(1, 3, 32, 32), 32)
    assert torch.equal(found[..., :8], black[..., :8])
    assert torch.equal(found[..., 24:], black[..., :8])
    assert (found[..., 8:24] > black[..., 8:24] + 3).all()
    assert whole_image(torch.ones(1, 3, 32, 20), 32).shape == (1, 3, 32, 32)


def test_smoothing_is_part_of_the_score() -> None:
    # Stripes as wide as a pixel are grey when smoothed, and stripes or plain when not.
    stripes = (torch.arange(96) % 2).float().expand(1, 3, 96, 96)
    smooth, sharp = (whole_image(stripes, 32, antialias) for antialias in (True, False))
    assert smooth[..., 4:-4, 4:-4].std((2, 3)).max() < 0.2
    assert sharp[..., 4:-4, 4:-4].std((2, 3)).min() > 1


@pytest.mark.parametrize(("version", "file"), [("v2.0", "v2"), ("v2.1", "v2.1")])
def test_the_score_is_the_cosine_of_the_checkpoint(folder: str, version: str, file: str) -> None:
    import open_clip

    model = open_clip.create_model(MODEL)
    checkpoint = torch.load(f"{folder}/HPS_{file}_compressed.pt", weights_only=True)
    model.load_state_dict(checkpoint["state_dict"])
    samples = noise(3, 60, 44)
    with torch.no_grad():
        pictures = model.eval().encode_image(torchvision_inputs(samples, 32, True))
        texts = model.encode_text(open_clip.get_tokenizer(MODEL)(PROMPTS))
    scores = HPS(version, folder, model=MODEL)(samples, PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, F.cosine_similarity(pictures, texts), rtol=0, atol=1e-5)


def test_versions_and_smoothing_change_the_score(folder: str) -> None:
    samples = noise(3, 90, 90)
    one = HPS("v2.1", folder, model=MODEL)(samples, PROMPTS)
    assert (HPS("v2.0", folder, model=MODEL)(samples, PROMPTS) - one).abs().min() > 1e-3
    other = HPS("v2.1", folder, antialias=False, model=MODEL)(samples, PROMPTS)
    assert (other - one).abs().min() > 1e-3


def test_scores_keep_the_contract(folder: str) -> None:
    check_reward(HPS(weights=folder, model=MODEL), noise(3, 40, 36), PROMPTS)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (60, 44)])
def test_the_gradient_is_the_slope_between_neighbouring_images(
    folder: str, height: int, width: int
) -> None:
    reward = HPS(weights=folder, model=MODEL)
    pixels = noise(3, height, width).pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(Images(pixels), PROMPTS).sum(), pixels)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    step = gradient.sign() / 255
    with torch.no_grad():
        rise = reward(Images(pixels + step), PROMPTS) - reward(Images(pixels - step), PROMPTS)
    torch.testing.assert_close(rise / 2, (gradient * step).sum((1, 2, 3)), rtol=0.05, atol=1e-4)


def test_two_rewards_of_one_version_load_its_file_once(
    folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        rewards = [HPS(weights=folder, model=MODEL, antialias=a) for a in (True, False)]
        for reward in rewards:
            reward(noise(), PROMPTS)
    loads = [r for r in caplog.messages if r.startswith("Loading full pretrained weights")]
    assert len(loads) == 1


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda reward: pickle.loads(pickle.dumps(reward))]
)
def test_copies_score_alike_and_carry_no_weights(folder: str, copied: Any) -> None:
    reward = HPS(weights=folder, model=MODEL)
    scores = reward(noise(), PROMPTS)
    assert len(pickle.dumps(reward)) < 10_000
    assert torch.equal(copied(reward)(noise(), PROMPTS), scores)


def test_weights_of_a_repository_are_asked_for_by_version(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[Sequence[str]] = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return f"{folder}/{file}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    HPS(model=MODEL)(noise(), PROMPTS)
    HPS("v2.0", model=MODEL)(noise(), PROMPTS)
    files = ["HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt"]
    assert asked == [("xswu/HPSv2", file) for file in files]


def test_what_does_not_exist_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"version is one of \['v2.0', 'v2.1'\], got 'v3'"):
        HPS("v3")
    with pytest.raises(FileNotFoundError, match=r"holds no HPS_v2\.1_compressed\.pt"):
        HPS(weights=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        HPS(weights=str(tmp_path / "nowhere"))


def test_only_images_are_scored(folder: str) -> None:
    with pytest.raises(TypeError, match="scores Images"):
        HPS(weights=folder)(Tokens(torch.zeros(1, 4, dtype=torch.int64), "ACGT"), [""])
