"""ImageReward: how well people would like an image for its prompt.

Source: Xu et al. (2023), NeurIPS, arXiv:2304.05977, section 3, and the repository
THUDM/ImageReward. The official package needs versions of transformers that are long gone; this one
depends on its tokenizer only. The head was trained without activations between its five layers; it
is evaluated as the one affine map that it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffreward.backbones import load_once, locate
from diffreward.embeddings.blip import Blip, below
from diffreward.preprocessing import clip_resize
from diffreward.reward import Reward
from diffreward.samples import Samples, images

_WEIGHTS, _CONFIG = "ImageReward.pt", "med_config.json"
# Of the official class: so shifted and scaled, its scores of the training data were standardised.
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072
_TOKENS = 35
# The head counts its dropouts: linear layers at these places have nothing else between them.
_HEAD_LAYERS = (0, 2, 4, 6, 7)


class ImageReward(Reward):
    """How much people prefer an image given its prompt, about -2.3 to 2, without bounds.

    Differentiable in the pixels. It was trained on comparisons of images for one prompt; between
    prompts its scores say less. A prompt is cut off after 35 tokens, the first and the last of
    which are marks. The network is loaded by the first call, in float32 (1.8 GB), onto the device
    of the pixels.

    Args:
        model: the hub id of the model, or a folder with its ``ImageReward.pt`` and
            ``med_config.json``.
        tokenizer: the hub id or the folder of the uncased BERT, for its ``vocab.txt``.

    Raises:
        FileNotFoundError: if a folder does not exist or lacks one of these files.
    """

    def __init__(
        self,
        model: str = "THUDM/ImageReward",
        tokenizer: str = "google-bert/bert-base-uncased",
    ) -> None:
        locate(model, _CONFIG)
        self.model = locate(model, _WEIGHTS)
        self.tokenizer = locate(tokenizer, "vocab.txt")
        self._network: _Network | None = None
        self._tokenize: Any = None

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        pixels = images(samples)
        if self._network is None:
            self._network = load_once(_Network, self.model, _load)
            self._tokenize = _load_tokenizer(self.tokenizer)
        network = self._network.to(pixels.device)
        text = self._tokenize(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=_TOKENS,
            return_tensors="pt",
        ).to(pixels.device)
        inputs = clip_resize(pixels, network.blip.image_size)
        preference: Tensor = network(inputs, text.input_ids, text.attention_mask.bool())
        return (preference - _MEAN) / _STD

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the network by itself when first called.
        return {**self.__dict__, "_network": None, "_tokenize": None}


class _Network(nn.Module):
    """Preprocessed images and tokens to the numbers that are standardised to scores.

    Args:
        state: the official state dict.
        config: the content of ``med_config.json``.

    Raises:
        ValueError: if the state dict is of another network.
    """

    slope: Tensor
    offset: Tensor

    def __init__(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        super().__init__()
        self.blip = Blip(below("blip.", state), config)
        slope, offset = _collapse(below("mlp.layers.", state))
        self.register_buffer("slope", slope)
        self.register_buffer("offset", offset)

    def forward(self, pixels: Tensor, ids: Tensor, attended: Tensor) -> Tensor:
        first: Tensor = self.blip(pixels, ids, attended)[:, 0].float()
        return (first * self.slope).sum(-1) + self.offset


def _collapse(state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The affine map, (D,) and (), float32, that the linear layers make together."""
    expected = [name for n in _HEAD_LAYERS for name in (f"{n}.weight", f"{n}.bias")]
    missing = [name for name in expected if name not in state]
    if missing:
        raise ValueError(f"the head of ImageReward lacks {missing}; it has {sorted(state)}")
    slope, offset = torch.ones(1, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for n in reversed(_HEAD_LAYERS):
        offset = offset + slope @ state[f"{n}.bias"].double()
        slope = slope @ state[f"{n}.weight"].double()
    return slope.float(), offset.float()


def _load(source: str) -> _Network:
    files = [Path(source) / name for name in (_WEIGHTS, _CONFIG)]
    if not Path(source).is_dir():
        from huggingface_hub import hf_hub_download

        files = [Path(hf_hub_download(source, name)) for name in (_WEIGHTS, _CONFIG)]
    state = torch.load(files[0], map_location="cpu", weights_only=True)
    return _Network(state, json.loads(files[1].read_text()))


def _load_tokenizer(source: str) -> Any:
    from transformers import BertTokenizer

    return BertTokenizer.from_pretrained(source)
