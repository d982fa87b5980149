"""HPS v2: how well people like an image of a prompt, by a CLIP model fine-tuned on their choices.

Source: Wu et al. (2023), arXiv:2306.09341, and the repository tgxs002/HPSv2, of which this repeats
the preprocessing of images: the longest side is brought to 224 pixels and the rest is filled with
black, so that nothing is cropped. That resizes floating-point images, whose values may then leave
[0, 1], unlike CLIP's own preprocessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from diffreward.backbones import EmbeddedTexts, OpenClip, locate, open_clip_model
from diffreward.preprocessing import CLIP_MEAN, CLIP_STD, quantise
from diffreward.reward import Reward
from diffreward.samples import Samples, images

_FILES = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class HPS(Reward):
    """Cosine of image and prompt, mostly 0.2 to 0.35. Differentiable in the pixels.

    Scores of two versions, or of images of two prompts, are not comparable. The model is loaded by
    the first call, in float32, onto the device of the pixels. A prompt longer than the model's
    context, 77 tokens, is cut off there.

    Args:
        version: ``v2.1`` or ``v2.0``, of the weights.
        weights: a hub id or a folder that holds their files, called as in the hub repository.
        antialias: whether images are smoothed before they are made smaller. The official code
            leaves that to torchvision, which does so from version 0.17 on and did not before: up to
            72 to 247 levels of a pixel differ, so this is part of what the score is.
        model: the architecture, a name of open_clip's.

    Raises:
        ValueError: if there is no such version.
        FileNotFoundError: if the folder does not exist or does not hold the file of the version.
    """

    def __init__(
        self,
        version: str = "v2.1",
        weights: str = "xswu/HPSv2",
        antialias: bool = True,
        model: str = "ViT-H-14",
    ) -> None:
        if version not in _FILES:
            raise ValueError(f"version is one of {list(_FILES)}, got {version!r}")
        self.version = version
        self.weights = locate(weights, _FILES[version])
        self.antialias = antialias
        self.model = model
        self._clip: OpenClip | None = None
        self._texts = EmbeddedTexts()

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        pixels = images(samples)
        if self._clip is None:
            self._clip = open_clip_model(self.model, _file(self.weights, _FILES[self.version]))
        clip = self._clip
        clip.model.to(pixels.device)
        texts = self._texts(prompts, clip.embed_text, pixels.device)
        size = max(clip.model.visual.image_size)
        pictures = clip.embed_images(whole_image(pixels, size, self.antialias))
        return (pictures * texts).sum(-1)

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the model by itself when first called.
        return {**self.__dict__, "_clip": None}


def whole_image(pixels: Tensor, size: int, antialias: bool = True) -> Tensor:
    """The 8-bit images, (B, 3, H, W) in [0, 1], as CLIP takes them, without cropping.

    Returns:
        (B, 3, size, size), float32, differentiable in the pixels. Unlike the official code, which
        leaves it as it is, an image whose longest side is `size` already is filled up, too.
    """
    levels = quantise(pixels) / 255
    longest = max(levels.shape[2:])
    height, width = (round(side * (size / longest)) for side in levels.shape[2:])
    if longest != size:
        levels = F.interpolate(levels, (height, width), mode="bicubic", antialias=antialias)
    top, left = (size - height) // 2, (size - width) // 2
    levels = F.pad(levels, (left, size - width - left, top, size - height - top))
    mean, std = (levels.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (levels - mean) / std


def _file(weights: str, name: str) -> str:
    if Path(weights).is_dir():
        return str(Path(weights) / name)
    from huggingface_hub import hf_hub_download

    return str(hf_hub_download(weights, name))
