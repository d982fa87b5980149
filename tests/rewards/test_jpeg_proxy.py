import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.jpeg import JpegCompressibility, JpegIncompressibility
from diffreward.rewards.jpeg_proxy import JpegProxy, coefficients, tables
from diffreward.samples import Images, Tokens

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def blotches(n: int = 4, size: int = 48) -> Tensor:
    """Noise of several sizes, each image with more of the fine kind than the one before."""
    coarse = torch.rand(n, 3, 6, 6, generator=stream(0))
    fine = torch.rand(n, 3, size, size, generator=stream(1)) - 0.5
    coarse = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return (coarse + fine * torch.linspace(0.02, 0.3, n)[:, None, None, None]).clamp(0.1, 0.9)


def saved(pixels: Tensor, quality: int) -> Image.Image:
    file = io.BytesIO()
    Images(pixels).pil()[0].save(file, "JPEG", quality=quality)
    return Image.open(file)


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 95, 100])
def test_the_tables_are_those_that_pillow_writes(quality: int) -> None:
    written = saved(blotches(1), quality).quantization
    for table, name in zip(tables(quality), (0, 1), strict=True):
        assert table.flatten().tolist() == list(written[name])


def test_a_grey_image_is_headers_and_empty_blocks() -> None:
    grey = Images(torch.full((1, 3, 16, 16), 128 / 255))
    assert JpegProxy()(grey, [""]).tolist() == pytest.approx([-0.623 - 6 * 2 / 8000])
    # In the file an empty block takes 6 bits of luminance or 4 of chrominance: 4 bytes in all.
    real = JpegCompressibility()(grey, [""]).item()
    assert real == pytest.approx(-0.623, abs=0.007)


def test_a_wave_has_one_coefficient() -> None:
    # Orthonormal: an amplitude of 40 levels over 64 pixels is 40 * 8 / 2 where both indices count.
    n = torch.arange(8)
    wave = torch.cos((2 * n + 1) * 3 * torch.pi / 16)
    levels = 128 + 40 * wave[:, None] * wave
    pixels = (levels / 255).repeat(3, 2, 2)[None]
    found = coefficients(pixels, 50)
    step = tables(50)[0][3, 3].item()
    # The levels are rounded: by half a level each, at most 4 in all, and far less in each place.
    expected = torch.zeros(6, 64)
    expected[:4, 3 * 8 + 3] = 160 / step
    torch.testing.assert_close(found[0], expected, rtol=0, atol=0.2)


def test_blocks_are_those_of_the_cosine_transform_in_the_order_of_the_file() -> None:
    fft = pytest.importorskip("scipy.fft")
    pixels = blotches(2, 30)
    levels = (pixels * 255).round().double().numpy()
    levels = np.pad(levels, ((0, 0), (0, 0), (0, 2), (0, 2)), mode="edge")
    ycc = np.array(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    )
    y, cb, cr = np.einsum("ij,bjhw->ibhw", ycc, levels)
    luminance, chrominance = (table.numpy() for table in tables(80))
    halves = [plane.reshape(2, 16, 2, 16, 2).mean((2, 4)) for plane in (cb, cr)]
    squares = [(r, c) for r in (0, 16) for c in (0, 16)]
    corners = [(r + i, c + j) for r, c in squares for i in (0, 8) for j in (0, 8)]
    whole = [(r, c) for r in (0, 8) for c in (0, 8)]
    expected = []
    planes = [(y - 128, luminance, corners), *((h, chrominance, whole) for h in halves)]
    for plane, table, places in planes:
        before = np.zeros(2)
        for r, c in places:
            block = fft.dctn(plane[:, r : r + 8, c : c + 8], axes=(1, 2), norm="ortho") / table
            mean = block[:, 0, 0].copy()
            block[:, 0, 0] -= before
            before = mean
            expected.append(block.reshape(2, 64))
    found = coefficients(pixels, 80)
    torch.testing.assert_close(found.double().numpy(), np.stack(expected, 1), rtol=0, atol=1e-3)


def test_scores_keep_the_contract() -> None:
    check_reward(JpegProxy(80), Images(blotches(4, 50)), [""] * 4)


def test_the_gradient_is_the_slope_between_neighbouring_images() -> None:
    reward = JpegProxy(50)
    pixels = blotches().requires_grad_()
    scores = reward(Images(pixels), [""] * 4)
    assert scores.dtype == torch.float32
    (gradient,) = torch.autograd.grad(scores.sum(), pixels)
    # |d| bends at 0, so the slope holds near an image only: few pixels move, by one level.
    step = torch.where(torch.rand(pixels.shape, generator=stream(2)) < 0.01, gradient.sign(), 0)
    step = step / 255
    with torch.no_grad():
        levels = (pixels * 255).round() / 255
        up, down = (reward(Images(levels + s * step), [""] * 4) for s in (1, -1))
    torch.testing.assert_close((up - down) / 2, (gradient * step).sum((1, 2, 3)), rtol=0.1, atol=0)


def test_following_the_gradient_shrinks_the_file() -> None:
    pixels = blotches()
    before = JpegCompressibility()(Images(pixels), [""] * 4)
    moved = follow(JpegProxy(), pixels)
    after = JpegCompressibility()(Images(moved), [""] * 4)
    # Images of much noise: 15 steps of one level cannot remove more.
    assert (after > 0.95 * before).all()
    assert ((moved - pixels).abs() <= 15.5 / 255).all()


def follow(reward: JpegProxy, pixels: Tensor, steps: int = 15) -> Tensor:
    for _ in range(steps):
        pixels = pixels.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(reward(Images(pixels), [""] * len(pixels)).sum(), pixels)
        pixels = pixels.detach() + gradient.sign() / 255
    return pixels


def pictures(side: int) -> Tensor:
    """Crops of real pictures, each one as it is and one of it made smaller."""
    folder = DATA / "rewards" / "images"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    crops = []
    for file in sorted(folder.iterdir()):
        image = Image.open(file).convert("RGB")
        for scale, left, top in ((1.0, 30, 60), (0.5, 20, 90), (1.0, 300, 200), (0.7, 150, 150)):
            size = (int(image.width * scale), int(image.height * scale))
            crop = image.resize(size).crop((left, top, left + side, top + side))
            crops.append(np.asarray(crop))
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2) / 255


def tiny_pictures() -> Tensor:
    """Pictures of 32 x 32, enlarged to 64 x 64."""
    file = DATA / "cifar10" / "test.parquet"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    table = pytest.importorskip("pyarrow.parquet").ParquetFile(file)
    rows = next(table.iter_batches(60, columns=["image"])).column("image").to_pylist()
    found = [Image.open(io.BytesIO(row["bytes"])).convert("RGB").resize((64, 64)) for row in rows]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_the_estimate_is_near_the_size_of_real_pictures(quality: int) -> None:
    samples = Images(pictures(128))
    prompts = [""] * len(samples)
    real = JpegCompressibility(quality)(samples, prompts)
    guess = JpegProxy(quality)(samples, prompts)
    assert torch.corrcoef(torch.stack([real, guess]))[0, 1] > 0.99
    assert (guess / real - 1).abs().mean() < 0.05
    torch.testing.assert_close(guess, real, rtol=0.15, atol=0)


def test_the_estimate_orders_pictures_that_it_was_not_fitted_to() -> None:
    samples = Images(tiny_pictures())
    prompts = [""] * len(samples)
    real, guess = JpegIncompressibility()(samples, prompts), -JpegProxy()(samples, prompts)
    assert torch.corrcoef(torch.stack([real, guess]))[0, 1] > 0.99
    torch.testing.assert_close(guess, real, rtol=0.05, atol=0)


def test_following_the_gradient_shrinks_the_files_of_real_pictures() -> None:
    pixels = pictures(64)[:8]
    before = JpegCompressibility()(Images(pixels), [""] * 8)
    after = JpegCompressibility()(Images(follow(JpegProxy(), pixels)), [""] * 8)
    assert (after > 0.95 * before).all()
    assert (after / before).mean() < 0.87


@pytest.mark.parametrize("quality", [0, 101])
def test_qualities_that_do_not_exist_are_refused(quality: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 100, got {quality}"):
        JpegProxy(quality)


def test_only_images_are_scored() -> None:
    with pytest.raises(TypeError, match="scores Images"):
        JpegProxy()(Tokens(torch.zeros(1, 4, dtype=torch.int64), "ACGT"), [""])
