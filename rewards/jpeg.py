"""JPEG compressibility: how small an image becomes when compressed.

Source: Black et al. (2024), arXiv:2305.13301, section 5.1. The unit is the kilobyte of 1000 bytes.
The file is a baseline JPEG with 4:2:0 chroma subsampling and the standard Huffman tables, which is
what Pillow writes by default and what the paper's code measures.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffreward.reward import Reward
from diffreward.samples import Images, Samples, images


@dataclass(frozen=True)
class JpegCompressibility(Reward):
    """Minus the size of the JPEG file in kilobytes: smooth images score high. Not differentiable.

    Args:
        quality: of the JPEG encoder, 1 to 100.

    Raises:
        ValueError: if there is no such quality.
    """

    quality: int = 95

    def __post_init__(self) -> None:
        _check_quality(self.quality)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return -kilobytes(images(samples), self.quality)


@dataclass(frozen=True)
class JpegIncompressibility(Reward):
    """The size of the JPEG file in kilobytes: images full of detail score high. Not differentiable.

    Args:
        quality: of the JPEG encoder, 1 to 100.

    Raises:
        ValueError: if there is no such quality.
    """

    quality: int = 95

    def __post_init__(self) -> None:
        _check_quality(self.quality)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return kilobytes(images(samples), self.quality)


def kilobytes(pixels: Tensor, quality: int) -> Tensor:
    """The sizes of B images, (B, 3, H, W) in [0, 1], as JPEG files: (B,), in 1000 bytes."""
    sizes = []
    for image in Images(pixels).pil():
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
        sizes.append(file.tell() / 1000)
    return torch.tensor(sizes, dtype=torch.float32, device=pixels.device)


def _check_quality(quality: int) -> None:
    # Pillow takes 0 for its default, 75.
    if not 1 <= quality <= 100:
        raise ValueError(f"the quality of a JPEG is 1 to 100, got {quality}")
