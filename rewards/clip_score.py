"""CLIP score: how well an image fits its prompt, by the cosine of their CLIP embeddings.

Source: Radford et al. (2021), arXiv:2103.00020, and Hessel et al. (2021), arXiv:2104.08718. The
score here is the cosine itself, about 0.1 to 0.4 for OpenAI's models. Other conventions in use:
100 times the cosine (the logits of CLIP, torchmetrics) is ``scale=100``; Hessel's CLIPScore is
2.5 times the positive part of the cosine, from ViT-B-32 with ``prefix="A photo depicts "`` and
``scale=2.5``. Nothing is cut off at zero here, where the gradient would end; a function that
returns ``clip_score(samples, prompts).clamp(min=0)`` is a reward too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffreward.preprocessing import clip_resize
from diffreward.reward import Reward
from diffreward.samples import Samples, images


class ClipScore(Reward):
    """Cosine similarity of image and prompt, in [-scale, scale]. Differentiable in the pixels.

    The model is loaded by the first call, in float32, onto the device of the pixels; the images are
    preprocessed as the model's own configuration says, with the pixels of open_clip's own
    transform. A prompt longer than the model's context, 77 tokens for most, is cut off there.

    Args:
        model: an open_clip name such as ``ViT-L-14``, a hub id after ``hf-hub:``, or a folder in
            open_clip's format (``open_clip_config.json`` and weights). What holds a slash and no
            ``hf-hub:`` is a folder.
        pretrained: the tag or the file of the weights, for an open_clip name.
        prefix: put before each prompt, with its space if it needs one.
        scale: what the cosine is multiplied by.

    Raises:
        FileNotFoundError: if the folder or the file of the weights does not exist.
    """

    def __init__(
        self,
        model: str = "ViT-L-14",
        pretrained: str = "openai",
        prefix: str = "",
        scale: float = 1.0,
    ) -> None:
        self.model = _resolve(model)
        if "/" in pretrained and not Path(pretrained).is_file():
            raise FileNotFoundError(f"there are no weights at {Path(pretrained).absolute()}")
        self.pretrained = pretrained
        self.prefix = prefix
        self.scale = scale
        self._clip: _Clip | None = None
        self._texts: dict[str, Tensor] = {}

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        pixels = images(samples)
        if self._clip is None:
            self._clip = _load(self.model, self.pretrained)
        clip = self._clip.to(pixels.device)
        for prompt in prompts:
            if prompt not in self._texts:
                self._texts[prompt] = clip.embed_text(self.prefix + prompt)
        text = torch.stack([self._texts[prompt] for prompt in prompts]).to(pixels.device)
        return self.scale * (clip.embed_images(pixels) * text).sum(-1)

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the model by itself when first called.
        return {**self.__dict__, "_clip": None}


@dataclass(frozen=True)
class _Clip:
    model: Any
    tokenizer: Callable[[list[str]], Tensor]
    preprocessing: dict[str, Any]

    def to(self, device: torch.device) -> _Clip:
        self.model.to(device)
        return self

    def embed_images(self, pixels: Tensor) -> Tensor:
        """(B, D), of length 1."""
        return F.normalize(
            self.model.encode_image(clip_resize(pixels, **self.preprocessing)).float(), dim=-1
        )

    def embed_text(self, text: str) -> Tensor:
        """(D,), of length 1, on the CPU.

        Each text is embedded alone and in float32: the embedding is kept, and must not depend on
        the call in which the text first came.
        """
        device = self.model.logit_scale.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            embedding = self.model.encode_text(self.tokenizer([text]).to(device))
            return F.normalize(embedding[0].float(), dim=-1).cpu()


def _resolve(model: str) -> str:
    """The model as open_clip names it: a folder is absolute and begins with ``local-dir:``."""
    if model.startswith("hf-hub:"):
        return model
    folder = Path(model.removeprefix("local-dir:")).expanduser().absolute()
    if (folder / "open_clip_config.json").is_file():
        return f"local-dir:{folder}"
    if model.startswith("local-dir:") or "/" in model or os.sep in model:
        raise FileNotFoundError(
            f"{folder} {'has no open_clip_config.json' if folder.is_dir() else 'does not exist'}; "
            f"the model {model!r} is read as a folder because of its slash: open_clip's own names "
            "are like ViT-L-14, hub ids like hf-hub:organisation/name"
        )
    return model


def _load(name: str, pretrained: str) -> _Clip:
    import open_clip

    weights = None if name.startswith(("hf-hub:", "local-dir:")) else pretrained
    # The name ViT-L-14 is plain GELU to open_clip, which only warns that OpenAI's weights are not.
    published = open_clip.get_pretrained_cfg(name, weights) if weights else {}
    # New parameters draw random numbers, and would be unusable later if made in inference mode.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        model = open_clip.create_model(
            name,
            weights,
            force_quick_gelu=bool(published.get("quick_gelu")),
            require_pretrained=True,
        )
    model.eval().requires_grad_(False)
    preprocessing = open_clip.get_model_preprocess_cfg(model)
    entries = ("size", "mean", "std", "interpolation", "resize_mode")
    return _Clip(
        model,
        open_clip.get_tokenizer(name),
        {entry: preprocessing[entry] for entry in entries},
    )
