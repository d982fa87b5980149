"""HPSv3 as a reward for ``python -m diffreward.serving``, in an environment of its own.

NOT RUN by us: no machine here had the weights. Written from the package's README and the source of
its `HPSv3RewardInferencer` (github.com/MizzenAI/HPSv3, version 1.0.1).

    pip install hpsv3 fastapi uvicorn
    pip install --no-deps diffreward
    python -m diffreward.serving examples/servers/hpsv3.py:score --rows 4

Source: Ma et al. (2025), arXiv:2508.03789. The model is a Qwen2-VL-7B with two outputs, the mean mu
and the spread sigma of a preference; the score is mu. It is unbounded: the averages of generators
in the authors' benchmark are between about -0.2 (SD 2) and 10.6 (Kolors). Weights: the hub's
MizzenAI/HPSv3 (the card says Apache-2.0, the package MIT), about 17 GB: a GPU of 24 GB.

Compare scores of one size of image only. The model brings every image to 256 tokens of 28 x 28
pixels, but rounds down for some sizes: 768 x 768 becomes 420 x 420, 512 x 512 and 1024 x 1024
become 448 x 448. Square images are brought to 448 x 448 here, and so have one score at any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from diffreward.samples import Images, Samples, images

if TYPE_CHECKING:
    from hpsv3 import HPSv3RewardInferencer

SIDE = 448
"""Pixels of a square image that the model's own preprocessing leaves as it is."""


def score(samples: Samples, prompts: Sequence[str]) -> Tensor:
    """The preference of each image for its prompt, (B,), higher is better."""
    pictures = Images(images(samples)).pil()
    pairs = zip(pictures, prompts, strict=True)
    return torch.stack([_preference(_one_size(picture), prompt) for picture, prompt in pairs])


def _preference(picture: Image.Image, prompt: str) -> Tensor:
    # One by one, for a batch is padded; by name, for the package's own calls differ in the order.
    logits = _model().reward(prompts=[prompt], image_paths=[picture])
    return logits[0][0].float().cpu()


def _one_size(picture: Image.Image) -> Image.Image:
    if picture.width != picture.height:
        return picture
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


@cache
def _model() -> HPSv3RewardInferencer:
    from hpsv3 import HPSv3RewardInferencer

    return HPSv3RewardInferencer(device="cuda" if torch.cuda.is_available() else "cpu")
