from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from diffreward.preprocessing import CLIP_MEAN, CLIP_STD, clip_resize, pil_resize, quantise
from diffreward.random import stream
from diffreward.samples import Images

PICTURES = Path(__file__).parents[1].parent / "shared" / "data" / "rewards" / "images"
UNNORMALISED = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def noise(width: int, height: int) -> Image.Image:
    levels = torch.randint(256, (height, width, 3), generator=stream(width, height))
    return Image.fromarray(levels.to(torch.uint8).numpy())


def as_pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def test_an_image_of_the_right_size_is_only_normalised() -> None:
    pixels = as_pixels(noise(24, 24))
    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]
    assert torch.equal(clip_resize(pixels, 24), (pixels - mean) / std)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [5, 24, 100])
def test_a_plain_image_stays_plain(size: int, interpolation: str) -> None:
    levels = torch.full((1, 3, 24, 31), 77.0)
    resized = pil_resize(levels, size, size, interpolation)
    assert torch.equal(resized, torch.full((1, 3, size, size), 77.0).double())


def test_levels_half_way_are_rounded_up_and_overshoot_is_clamped() -> None:
    edge = torch.tensor([[0.0, 255.0]])
    assert pil_resize(edge, 1, 1, "bilinear").item() == 128
    # Keys' kernel at 1/4, 3/4, 5/4, 7/4 is 111/128, 29/128, -9/128, -3/128. The first output lies
    # 1/4 left of the centre of the first input, so its weights are 111 and -9 in 102 parts.
    assert pil_resize(edge, 1, 4).tolist() == [[0, 53, 202, 255]]
    # The triangle at 1/4, 3/4, 5/4 is 3/4, 1/4, 0: these are 100, 100.5, 101.5 and 102.
    step = torch.tensor([[100.0, 102.0]])
    assert pil_resize(step, 1, 4, "bilinear").tolist() == [[100, 101, 102, 102]]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (32, 32, 64),
        (32, 32, 224),
        (941, 627, 224),
        (627, 941, 224),
        (225, 224, 224),
        (224, 227, 224),
        (301, 200, 64),
        (100, 33, 48),
        (3, 5, 64),
        (1, 1, 16),
    ],
)
def test_noise_gets_the_pixels_of_open_clip(
    width: int, height: int, size: int, interpolation: str
) -> None:
    import open_clip

    image = noise(width, height)
    official = open_clip.image_transform(size, is_train=False, interpolation=interpolation)
    ours = clip_resize(as_pixels(image), size, interpolation=interpolation)
    assert torch.equal(ours[0], official(image))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("width", [20, 32, 57])
def test_squashing_gets_the_pixels_of_open_clip(width: int, interpolation: str) -> None:
    import open_clip

    image = noise(width, 20)
    arguments = {"interpolation": interpolation, "resize_mode": "squash"}
    official = open_clip.image_transform(32, is_train=False, **arguments)
    assert torch.equal(clip_resize(as_pixels(image), 32, **arguments)[0], official(image))


@pytest.mark.parametrize("name", ["imscore_cat.png", "hpsv2_demo_image.jpg", "imagereward_1.webp"])
def test_real_images_get_the_pixels_of_open_clip(name: str) -> None:
    import open_clip

    if not (PICTURES / name).is_file():
        pytest.skip(f"{PICTURES / name} is not here")
    image = Image.open(PICTURES / name).convert("RGB")
    official = open_clip.image_transform(224, is_train=False)(image)
    assert torch.equal(clip_resize(as_pixels(image), 224)[0], official)


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_the_order_of_the_axes_is_all_that_differs_in_tall_images(resize_mode: str) -> None:
    # From version 13 on, Pillow may resize the height first where it shrinks more than the width.
    import open_clip

    image = noise(97, 284)
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "resize_mode": resize_mode}
    official = open_clip.image_transform(45, is_train=False, **plain)(image)
    error = 255 * (clip_resize(as_pixels(image), 45, **plain)[0] - official).abs()
    assert error.max() < 2.5
    assert error.mean() < 0.3


def test_the_preprocessed_float_equals_the_preprocessed_png(tmp_path: Path) -> None:
    import open_clip

    pixels = torch.rand(1, 3, 40, 52, generator=stream(0))
    Images(pixels).pil()[0].save(tmp_path / "sample.png")
    official = open_clip.image_transform(32, is_train=False)
    assert torch.equal(clip_resize(pixels, 32)[0], official(Image.open(tmp_path / "sample.png")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_quantised_pixels_are_the_levels_of_the_saved_image(dtype: torch.dtype) -> None:
    pixels = torch.linspace(-0.1, 1.1, 3 * 40 * 40, dtype=torch.float64).view(1, 3, 40, 40)
    levels = quantise(pixels.to(dtype))
    assert torch.equal(levels, Images(pixels.to(dtype)).uint8().permute(0, 3, 1, 2).float())


@pytest.mark.parametrize(("rows", "columns"), [(20, 20), (48, 48), (90, 61), (32, 40)])
def test_the_gradient_is_that_of_resizing_without_rounding(rows: int, columns: int) -> None:
    # torch's antialiased bicubic resize has the same kernel, in float32 weights.
    pixels = torch.rand(2, 3, rows, columns, generator=stream(1)).requires_grad_()
    direction = torch.randn(2, 3, 32, 32, generator=stream(2))
    (ours,) = torch.autograd.grad(
        (clip_resize(pixels, 32, **UNNORMALISED) * direction).sum(), pixels
    )
    scale = 32 / min(rows, columns)
    height, width = int(rows * scale), int(columns * scale)
    smooth = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    top, left = round((height - 32) / 2), round((width - 32) / 2)
    smooth = smooth[:, :, top : top + 32, left : left + 32]
    (expected,) = torch.autograd.grad((smooth * direction).sum(), pixels)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
    assert ours.abs().sum() > 0


def test_pixels_without_gradient_get_no_graph() -> None:
    assert not clip_resize(torch.rand(1, 3, 8, 8, generator=stream(0)), 16).requires_grad


def test_neither_the_batch_nor_autocast_changes_a_pixel() -> None:
    pixels = torch.rand(5, 3, 40, 30, generator=stream(3))
    together = clip_resize(pixels, 32)
    alone = torch.cat([clip_resize(image[None], 32) for image in pixels])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        automatic = clip_resize(pixels, 32)
    assert torch.equal(together, alone)
    assert torch.equal(together, automatic)


def test_what_is_not_supported_is_refused() -> None:
    pixels = torch.rand(1, 3, 8, 8, generator=stream(0))
    with pytest.raises(ValueError, match=r"resize_mode .*'longest'"):
        clip_resize(pixels, 16, resize_mode="longest")
    with pytest.raises(ValueError, match=r"interpolation .*'nearest'"):
        clip_resize(pixels, 16, interpolation="nearest")
    with pytest.raises(ValueError, match=r"\(16, 24\)"):
        clip_resize(pixels, (16, 24))
    assert clip_resize(pixels, (16, 24), resize_mode="squash").shape == (1, 3, 16, 24)
