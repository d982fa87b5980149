"""CLIP's embedding of images, for sets of images and for how alike two images are.

Source: Radford et al. (2021), ICML, arXiv:2103.00020; as the embedding of a Fréchet distance
Kynkäänniemi et al. (2023), ICLR, arXiv:2203.06026, and `clip_features.py` of clean-fid, whose
CLIP-FID is that of ``openai/clip-vit-base-patch32``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffreward.backbones import clip_image_tower, locate
from diffreward.embedding import Embedding
from diffreward.preprocessing import clip_resize
from diffreward.samples import Samples, images


class ClipImageEmbedding(Embedding):
    """One row per image: its projected CLIP embedding, of any length. Differentiable.

    The image tower is loaded by the first call, in float32, onto the device of the pixels; rewards
    on the same model share it.

    Args:
        model: a CLIP model of transformers, hub id or folder.

    Raises:
        FileNotFoundError: if the folder does not exist or holds no model.
    """

    def __init__(self, model: str = "openai/clip-vit-base-patch32") -> None:
        self.model = locate(model)
        self._tower: Any = None

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B images to (B, 1, D), float32."""
        pixels = images(samples)
        if self._tower is None:
            self._tower = clip_image_tower(self.model)
        tower = self._tower.to(pixels.device)
        inputs = clip_resize(pixels, tower.config.image_size)
        rows: Tensor = tower(pixel_values=inputs).image_embeds
        return rows[:, None].float()

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the tower by itself when first called.
        return {**self.__dict__, "_tower": None}
