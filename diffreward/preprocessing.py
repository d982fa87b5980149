"""The image preprocessing of CLIP models, differentiable and equal to the official one.

Official scores are computed from 8-bit images that PIL has resized; resized otherwise, the same
image gets another score. So this module repeats PIL's arithmetic: each axis by itself, width first,
with weights of 22 binary digits, and the result of each rounded to 8-bit levels. Such sums are
exact in float64 in any order, hence the pixels equal PIL's on every device, also under autocast
and TF32. Rounding and clamping are straight-through: their gradient is that of the identity.

Pillow from version 13 on takes the height first in some images that are taller than wide (with
``shortest``, if more than twice as tall). There our pixels remain those of its versions before 13:
a score does not change with the version of a library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""What OpenAI's CLIP models subtract from the red, green and blue channels."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""What they then divide the channels by."""


def clip_resize(
    pixels: Tensor,
    size: int | Sequence[int],
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    interpolation: str = "bicubic",
    resize_mode: str = "shortest",
    halve: Callable[[float], int] = round,
) -> Tensor:
    """What a CLIP image tower takes: (B, 3, *size), float32, differentiable in the pixels.

    Equal to open_clip's `image_transform` of the saved 8-bit images. All arguments but the first
    and the last are entries of open_clip's preprocessing configuration, under their names there.

    Args:
        pixels: (B, 3, H, W), in [0, 1].
        size: height and width of the result, or the side of a square.
        mean: subtracted from each channel.
        std: divides each channel.
        interpolation: ``bicubic`` or ``bilinear``.
        resize_mode: ``shortest`` brings the shortest side to `size`, then crops the centre;
            ``squash`` brings both sides to `size`.
        halve: makes whole pixels of half the margin that is cropped. torchvision and open_clip
            round to an even number; transformers' `CLIPImageProcessor` takes `math.floor`.

    Raises:
        ValueError: if the interpolation, the resize mode or the size is none of these.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if resize_mode not in _RESIZE_MODES:
        raise ValueError(f"resize_mode is one of {list(_RESIZE_MODES)}, got {resize_mode!r}")
    resized = _RESIZE_MODES[resize_mode](pixels.shape[2], pixels.shape[3], height, width)
    levels = pil_resize(quantise(pixels), *resized, interpolation)
    levels = _centre_crop(levels, height, width, halve).float()
    shift = levels.new_tensor(mean)[:, None, None]
    return (levels / 255 - shift) / levels.new_tensor(std)[:, None, None]


def quantise(pixels: Tensor) -> Tensor:
    """The levels that an image in [0, 1] has in an 8-bit file: whole numbers in [0, 255], float32.

    They are those of `Images.uint8`; the gradient is that of ``255 * pixels``.
    """
    levels = pixels.float() * 255
    return _straight_through(levels, levels.detach().round().clamp(0, 255))


def pil_resize(levels: Tensor, height: int, width: int, interpolation: str = "bicubic") -> Tensor:
    """8-bit levels as PIL resizes them: (..., height, width), whole numbers in [0, 255].

    Args:
        levels: (..., H, W), whole numbers in [0, 255].
        height: of the result.
        width: of the result.
        interpolation: ``bicubic`` or ``bilinear``.

    Raises:
        ValueError: if the interpolation is another.
    """
    if interpolation not in _KERNELS:
        raise ValueError(f"interpolation is one of {list(_KERNELS)}, got {interpolation!r}")
    kernel = _KERNELS[interpolation]
    # MPS has no float64: there a level next to a tie may come out one too high or too low.
    levels = levels.to(torch.float32 if levels.device.type == "mps" else torch.float64)
    if levels.shape[-1] != width:
        levels = _to_levels(levels @ _weights(levels.shape[-1], width, kernel).to(levels).T)
    if levels.shape[-2] != height:
        levels = _to_levels(_weights(levels.shape[-2], height, kernel).to(levels) @ levels)
    return levels


def _weights(n_in: int, n_out: int, kernel: Callable[[Tensor], Tensor]) -> Tensor:
    """(n_out, n_in), float64: what each input pixel contributes to each output pixel."""
    scale = n_in / n_out
    support = max(scale, 1.0)  # when shrinking, the kernel widens: no aliasing
    inputs = torch.arange(n_in, dtype=torch.float64) + 0.5
    outputs = (torch.arange(n_out, dtype=torch.float64)[:, None] + 0.5) * scale
    weights = kernel(((inputs - outputs) / support).abs())
    weights = weights / weights.sum(1, keepdim=True)
    # Fixed point: 8 bits of the pixel, 22 of the weight and 2 to spare make the 32 of an integer.
    return weights.sign() * (weights.abs() * 2**22 + 0.5).floor() / 2**22


def _cubic(distance: Tensor) -> Tensor:
    # Keys' cubic convolution with a = -0.5: 1 at 0; 0 at 1 and beyond 2.
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


_KERNELS = {"bicubic": _cubic, "bilinear": _triangle}


def _shortest(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    if height != width:
        raise ValueError(f"resize_mode 'shortest' makes squares, got size {(height, width)}")
    short, long = min(rows, columns), max(rows, columns)
    longer = int(height * long / short)
    return (height, longer) if rows < columns else (longer, height)


def _squash(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    return height, width


_RESIZE_MODES = {"shortest": _shortest, "squash": _squash}


def _centre_crop(levels: Tensor, height: int, width: int, halve: Callable[[float], int]) -> Tensor:
    top = halve((levels.shape[-2] - height) / 2)
    left = halve((levels.shape[-1] - width) / 2)
    return levels[..., top : top + height, left : left + width]


def _to_levels(values: Tensor) -> Tensor:
    return _straight_through(values, (values.detach() + 0.5).floor().clamp(0, 255))


def _straight_through(values: Tensor, replacement: Tensor) -> Tensor:
    return replacement + (values - values.detach())
