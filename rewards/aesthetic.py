"""LAION aesthetic predictors: the rating that people would give an image, from 1 to 10.

Source: Schuhmann et al. (2022), arXiv:2210.08402, section 6, and the repositories
LAION-AI/aesthetic-predictor (version 1) and christophschuhmann/improved-aesthetic-predictor
(version 2). Version 2 was trained without activations between its five layers, so it is an affine
function of the embedding, as version 1 is. It is evaluated as one, which in low precision is also
more exact. An affine function of a unit vector has one direction in which to rise: easy to exploit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffreward.backbones import clip_image_tower, locate
from diffreward.preprocessing import clip_resize
from diffreward.reward import Reward
from diffreward.samples import Samples, images

# Version 2 counts its dropouts: linear layers at these places have nothing else between them.
_VERSION_2_LAYERS = [0, 2, 4, 6, 7]


class Aesthetic(Reward):
    """The predicted rating of an image, mostly 3 to 8. Differentiable in the pixels.

    The head decides what is predicted; it says by its layers which kind it is. The image tower is
    loaded by the first call, in float32, onto the device of the pixels; several heads share one.

    Args:
        head: the file of the head: ``sac+logos+ava1-l14-linearMSE.pth`` (version 2, the usual one)
            of github.com/christophschuhmann/improved-aesthetic-predictor, or
            ``sa_0_4_vit_l_14_linear.pth`` (version 1) of github.com/LAION-AI/aesthetic-predictor.
        backbone: the CLIP model whose image embeddings the head was trained on, a transformers hub
            id or a folder.

    Raises:
        FileNotFoundError: if the head or the folder of the backbone does not exist.
        ValueError: if the head is not a stack of linear layers that ends in one number.
    """

    def __init__(self, head: str, backbone: str = "openai/clip-vit-large-patch14") -> None:
        path = Path(head).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no head at {path.absolute()}; download it from github.com/"
                "christophschuhmann/improved-aesthetic-predictor, where it is called "
                "sac+logos+ava1-l14-linearMSE.pth"
            )
        self.head = head
        self.backbone = locate(backbone)
        # The published files hold CUDA tensors.
        state = torch.load(path, map_location="cpu", weights_only=True)
        self._weight, self._bias = _collapse(state, head)
        self._tower: Any = None

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        pixels = images(samples)
        if self._tower is None:
            self._tower = clip_image_tower(self.backbone)
        tower = self._tower.to(pixels.device)
        inputs = clip_resize(pixels, tower.config.image_size)
        return self.score_embeddings(tower(pixel_values=inputs).image_embeds)

    def score_embeddings(self, embeddings: Tensor) -> Tensor:
        """The ratings, (B,) float32, of CLIP image embeddings, (B, D), of any length.

        Raises:
            ValueError: if the head is for embeddings of another dimension.
        """
        if embeddings.shape[-1] != len(self._weight):
            raise ValueError(
                f"{self.head} takes embeddings of {len(self._weight)} numbers, got "
                f"{embeddings.shape[-1]}; give the backbone that it was trained on"
            )
        directions = F.normalize(embeddings.float(), dim=-1)
        weight, bias = self._weight.to(embeddings.device), self._bias.to(embeddings.device)
        return (directions * weight).sum(-1) + bias

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the image tower by itself when first called.
        return {**self.__dict__, "_tower": None}


def _collapse(state: Mapping[str, Tensor], head: str) -> tuple[Tensor, Tensor]:
    """The affine map, (D,) and (), float32, that the linear layers of a state dict make together.

    A state dict does not tell what else stood between them. Layers numbered in other ways than the
    published heads may have had activations there, and are refused.
    """
    stems = sorted({name.removesuffix("weight").removesuffix("bias") for name in state}, key=_place)
    places = [_place(stem) for stem in stems]
    slope, offset = torch.ones(1, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    try:
        for stem in reversed(stems):
            offset = offset + slope @ state[stem + "bias"].double()
            slope = slope @ state[stem + "weight"].double()
    except (KeyError, RuntimeError):
        slope = torch.empty(())
    known = places in (_VERSION_2_LAYERS, list(range(len(places))))
    if not stems or not known or slope.ndim != 1:
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        raise ValueError(
            f"{head} is not a stack of linear layers that ends in one number, with nothing "
            f"between them: {shapes}"
        )
    return slope.float(), offset.float()


def _place(stem: str) -> int:
    """Where a layer stands in its `Sequential`: 2 for ``layers.2.``; 0 for one without number."""
    number = stem.rstrip(".").rpartition(".")[2]
    return int(number) if number.isdigit() else 0
