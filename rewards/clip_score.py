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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from diffreward.backbones import EmbeddedTexts, OpenClip, open_clip_model
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
        self.pretrained = None if self.model.startswith(("hf-hub:", "local-dir:")) else pretrained
        self.prefix = prefix
        self.scale = scale
        self._clip: OpenClip | None = None
        self._texts = EmbeddedTexts()

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        pixels = images(samples)
        if self._clip is None:
            self._clip = open_clip_model(self.model, self.pretrained)
        clip = self._clip
        clip.model.to(pixels.device)
        texts = self._texts(
            [self.prefix + prompt for prompt in prompts], clip.embed_text, pixels.device
        )
        inputs = clip_resize(pixels, **_preprocessing(clip.model))
        return self.scale * (clip.embed_images(inputs) * texts).sum(-1)

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the model by itself when first called.
        return {**self.__dict__, "_clip": None}


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


def _preprocessing(model: Any) -> dict[str, Any]:
    """The entries of the model's configuration that `clip_resize` takes."""
    import open_clip

    entries = open_clip.get_model_preprocess_cfg(model)
    return {name: entries[name] for name in ("size", "mean", "std", "interpolation", "resize_mode")}
