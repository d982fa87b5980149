from pathlib import Path

import pytest
import torch
from PIL import Image

from diffreward.random import stream
from diffreward.rewards.jpeg import JpegCompressibility, JpegIncompressibility
from diffreward.samples import Images, Tokens


def plain_and_noise() -> Images:
    noise = torch.rand(1, 3, 48, 32, generator=stream(0))
    return Images(torch.cat([torch.full_like(noise, 0.5), noise]))


@pytest.mark.parametrize("quality", [30, 95])
def test_the_score_is_the_size_of_the_file_that_pillow_saves(tmp_path: Path, quality: int) -> None:
    samples = plain_and_noise()
    sizes = []
    for i, levels in enumerate(samples.uint8()):
        Image.fromarray(levels.numpy()).save(tmp_path / f"{i}.jpg", quality=quality)
        sizes.append((tmp_path / f"{i}.jpg").stat().st_size)
    scores = JpegIncompressibility(quality)(samples, ["", ""])
    assert scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx([size / 1000 for size in sizes], rel=1e-6)


def test_compressibility_is_minus_incompressibility() -> None:
    samples = plain_and_noise()
    small, large = (
        JpegCompressibility()(samples, ["", ""]),
        JpegIncompressibility()(samples, ["", ""]),
    )
    assert torch.equal(small, -large)
    assert small[0] > small[1]


def test_scores_of_images_with_gradient_have_none() -> None:
    samples = Images(plain_and_noise().pixels.requires_grad_())
    assert not JpegCompressibility()(samples, ["", ""]).requires_grad


@pytest.mark.parametrize("reward", [JpegCompressibility, JpegIncompressibility])
@pytest.mark.parametrize("quality", [0, 101, -1])
def test_qualities_that_do_not_exist_are_refused(
    reward: type[JpegCompressibility], quality: int
) -> None:
    with pytest.raises(ValueError, match=f"1 to 100, got {quality}"):
        reward(quality)


def test_only_images_are_scored() -> None:
    with pytest.raises(TypeError, match="scores Images"):
        JpegCompressibility()(Tokens(torch.zeros(1, 4, dtype=torch.int64), "ACGT"), [""])
