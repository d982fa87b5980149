"""VGGish: the embedding that the Frechet audio distance was defined with.

Source: Hershey et al. (2017), ICASSP, arXiv:1609.09430; Kilgour et al. (2019), Interspeech,
arXiv:1812.08466, for the distance. The layers have the names of github.com/harritaylor/torchvggish.
As in fadtk (Gui et al., 2024, arXiv:2311.01616) the principal components and the rounding of the
AudioSet release, which belong to another use, are left out, and so is the last rectification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreward.audio.mel import VGGISH_RATE, vggish_patches
from diffreward.audio.resampling import mono
from diffreward.backbones import load_once
from diffreward.embedding import Embedding
from diffreward.embeddings.files import check_layers, read_weights, weights_file
from diffreward.samples import Samples

# A convolution at each of these places of `features`, a pool before those marked.
_CONVOLUTIONS = {0: False, 3: True, 6: True, 8: False, 11: True, 13: False}
_DENSE = (0, 2, 4)


class VGGish(Embedding):
    """A row of 128 features for each 0.96 s of a sound. Differentiable in the waves.

    A sound is mixed down to mono and brought to 16 kHz. What remains after the last whole 0.96 s is
    left out; a sound below 0.975 s is silent at the end. The network, of 72 million parameters, is
    loaded by the first call, in float32, onto the device of the waves.

    Args:
        weights: the file ``vggish-10086976.pth``, a release of github.com/harritaylor/torchvggish.
        rectified: whether the last layer is rectified, as in the AudioSet release, where all
            features are 0 or greater. Published Frechet audio distances differ in this.

    Raises:
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, weights: str, rectified: bool = False) -> None:
        self.weights = weights_file(
            weights,
            "download vggish-10086976.pth from the releases of github.com/harritaylor/torchvggish",
        )
        self.rectified = rectified
        self._network: _VGG | None = None

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B sounds to (B, R, 128), float32.

        Raises:
            TypeError: if the samples are no sounds.
            ValueError: by the first call, if the file holds other weights.
        """
        if self._network is None:
            self._network = load_once(_VGG, self.weights, _load)
        patches = vggish_patches(mono(samples, VGGISH_RATE))
        network = self._network.to(patches.device)
        with torch.autocast(patches.device.type, enabled=False):
            rows: Tensor = network(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        return rows.relu() if self.rectified else rows

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the network by itself when first called.
        return {**self.__dict__, "_network": None}


class _VGG(nn.Module):
    """(N, 96, 64) log-mel patches to (N, 128)."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        # Widths are the file's, so that a small one can stand for the large one.
        shapes = {name: tensor.shape for name, tensor in state.items()}
        self.features = nn.ModuleDict()
        for place in _CONVOLUTIONS:
            out, into, *_ = shapes[f"features.{place}.weight"]
            self.features[str(place)] = nn.Conv2d(into, out, 3, padding=1)
        self.embeddings = nn.ModuleDict()
        for place in _DENSE:
            out, into = shapes[f"embeddings.{place}.weight"]
            self.embeddings[str(place)] = nn.Linear(into, out)

    def forward(self, patches: Tensor) -> Tensor:
        x = patches[:, None]
        for place, pooled in _CONVOLUTIONS.items():
            x = F.max_pool2d(x, 2) if pooled else x
            x = self.features[str(place)](x).relu()
        # The order of the TensorFlow model: time, frequency, channel.
        x = F.max_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1)
        first, second, last = self.embeddings.values()
        features: Tensor = last(second(first(x).relu()).relu())
        return features


def _load(file: str) -> _VGG:
    state = read_weights(file)
    names = [f"features.{place}.weight" for place in _CONVOLUTIONS]
    check_layers(state, [*names, *(f"embeddings.{place}.weight" for place in _DENSE)], file)
    with torch.device("meta"):
        network = _VGG(state)
    network.load_state_dict(state, assign=True)
    return network
