"""The damage that generators and autoencoders do to images, as augmentation."""

import torch
from torch import Tensor
from torch.nn import functional as F


def degrade(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return images of the quality that a generator or a VAE may produce.

    Digits are turned, scaled and moved a little; three images in four are blurred by shrinking
    them, and all get noise of a random strength and a change of brightness.

    Args:
        pixels: Images in [0, 1], of shape (B, 3, 32, 32).
        generator: Draws the changes.
    """
    count = len(pixels)
    pixels = _warp(pixels, torch.randn(count, 2, 3, generator=generator))
    kind = torch.randint(4, (count,), generator=generator)
    for value, size in ((1, 24), (2, 18), (3, 14)):
        small = F.interpolate(pixels[kind == value], (size, size), mode="area")
        pixels[kind == value] = F.interpolate(small, (32, 32), mode="bilinear")
    strength = 0.12 * torch.rand(count, 1, 1, 1, generator=generator).square()
    noise = torch.randn(pixels.shape, generator=generator)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    patches = F.interpolate(coarse, (32, 32), mode="bilinear")
    gain = 1 + 0.06 * torch.randn(count, 3, 1, 1, generator=generator)
    return (pixels * gain + strength * (noise + patches)).clamp(0, 1)


def _warp(pixels: Tensor, noise: Tensor) -> Tensor:
    """Apply small affine maps given by standard normal numbers of shape (B, 2, 3)."""
    identity = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    maps = identity + 0.08 * noise.clamp(-2, 2)
    grid = F.affine_grid(maps, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
