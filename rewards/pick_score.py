"""PickScore: which image of a prompt people would pick.

Source: Kirstain et al. (2023), arXiv:2305.01569, equation 1. A CLIP model trained on people's
choices between two images of one prompt: the difference of two scores is the log-odds of the
choice. It was never asked to compare the scores of different prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffreward.backbones import EmbeddedTexts, features, load_once, locate
from diffreward.preprocessing import clip_resize
from diffreward.reward import Reward
from diffreward.samples import Samples, images


class PickScore(Reward):
    """Log-odds of being picked, about 15 to 26 as published. Differentiable in the pixels.

    The model is loaded by the first call, in float32, onto the device of the pixels. A prompt
    longer than the model's context, 77 tokens, is cut off there.

    Args:
        model: a CLIP model of transformers, a hub id or a folder.
        processor: its tokenizer, a hub id or a folder. The images are preprocessed as CLIP's.
        scale: what the cosine is multiplied by. None is the model's own temperature, 100, as
            published; 1 gives the cosine, and 100 / 26 the score divided by 26, which some
            reinforcement-learning code uses to bring it near 1.

    Raises:
        FileNotFoundError: if a folder does not exist or holds something else.
    """

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        scale: float | None = None,
    ) -> None:
        self.model = locate(model)
        self.processor = locate(processor, "tokenizer_config.json")
        self.scale = scale
        self._clip: Any = None
        self._tokenizer: Any = None
        self._texts = EmbeddedTexts()

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        pixels = images(samples)
        if self._clip is None:
            self._load()
        clip = self._clip.to(pixels.device)
        texts = self._texts(prompts, self._embed_text, pixels.device)
        inputs = clip_resize(pixels, clip.config.vision_config.image_size, halve=math.floor)
        pictures = F.normalize(
            features(clip.get_image_features(pixel_values=inputs)).float(), dim=-1
        )
        scale = clip.logit_scale.exp() if self.scale is None else self.scale
        return scale * (F.normalize(pictures, dim=-1) * texts).sum(-1)

    def _embed_text(self, text: str) -> Tensor:
        """(D,), of length 1."""
        longest = self._clip.config.text_config.max_position_embeddings
        tokens = self._tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
        embedding = self._clip.get_text_features(**tokens.to(self._clip.logit_scale.device))
        return F.normalize(features(embedding)[0].float(), dim=-1)

    def _load(self) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self._tokenizer = AutoTokenizer.from_pretrained(self.processor)
        self._clip = load_once(
            CLIPModel,
            self.model,
            lambda source: CLIPModel.from_pretrained(source, dtype=torch.float32),
        )

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the model by itself when first called.
        return {**self.__dict__, "_clip": None, "_tokenizer": None}
