"""PANNs: what a network that names the sounds of AudioSet sees in a clip.

Source: Kong et al. (2020), IEEE/ACM TASLP, arXiv:1912.10211: the network CNN14, in its versions for
8, 16 and 32 kHz. The layers have the names of github.com/qiuqiangkong/audioset_tagging_cnn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreward.audio.mel import mel_decibels
from diffreward.audio.resampling import mono
from diffreward.backbones import load_once
from diffreward.embedding import Embedding
from diffreward.embeddings.files import check_layers, read_weights, weights_file
from diffreward.samples import Samples

_FILTERS = "logmel_extractor.melW"
_BLOCKS = 6
# Frequencies of a spectrum tell the versions apart: samples per second, and from one spectrum to
# the next (10 ms in each).
_VERSIONS = {129: (8_000, 80), 257: (16_000, 160), 513: (32_000, 320)}
_FRAMES = 2 ** (_BLOCKS - 1)
"""Spectra that the five pools need."""


class PANNs(Embedding):
    """One row of 2048 features, at least 0, per clip of any length. Differentiable in the waves.

    A sound is mixed down to mono and brought to the rate of the network; one below 0.31 s is silent
    at the end. The network, of 81 million parameters, is loaded by the first call, in float32, onto
    the device of the waves.

    Args:
        weights: the file ``Cnn14_mAP=0.431.pth`` (32 kHz), ``Cnn14_16k_mAP=0.438.pth`` or
            ``Cnn14_8k_mAP=0.416.pth`` of zenodo.org/record/3987831.

    Raises:
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, weights: str) -> None:
        self.weights = weights_file(
            weights, "download Cnn14_mAP=0.431.pth from zenodo.org/record/3987831"
        )
        self._network: _CNN14 | None = None

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B sounds to (B, 1, 2048), float32.

        Raises:
            TypeError: if the samples are no sounds.
            ValueError: by the first call, if the file holds other weights.
        """
        if self._network is None:
            self._network = load_once(_CNN14, self.weights, _load)
        network = self._network
        waves = mono(samples, network.rate)
        with torch.autocast(waves.device.type, enabled=False):
            rows: Tensor = network.to(waves.device)(waves)
        return rows[:, None]

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the network by itself when first called.
        return {**self.__dict__, "_network": None}


class _CNN14(nn.Module):
    """(N, T) waves to (N, 2048)."""

    filters: Tensor

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        filters = state[_FILTERS]
        self.rate, self.hop = _VERSIONS[len(filters)]
        self.register_buffer("filters", filters)
        self.bn0 = nn.BatchNorm2d(filters.shape[1])
        for block in range(1, _BLOCKS + 1):
            out, into, *_ = state[f"conv_block{block}.conv1.weight"].shape
            self.add_module(f"conv_block{block}", _Block(into, out))
        out, into = state["fc1.weight"].shape
        self.fc1 = nn.Linear(into, out)

    def forward(self, waves: Tensor) -> Tensor:
        missing = (_FRAMES - 1) * self.hop - waves.shape[1]
        waves = F.pad(waves, (0, max(missing, 0)))
        levels = mel_decibels(waves, self.filters, self.hop)
        # Each band has its own mean and deviation.
        x = self.bn0(levels.mT[:, :, None]).movedim(1, 3)
        for block in range(1, _BLOCKS + 1):
            x = self.get_submodule(f"conv_block{block}")(x)
            x = F.avg_pool2d(x, 2) if block < _BLOCKS else x
        x = x.mean(3)
        features: Tensor = self.fc1(x.amax(2) + x.mean(2)).relu()
        return features


class _Block(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        features: Tensor = self.bn2(self.conv2(x)).relu()
        return features


def _load(file: str) -> _CNN14:
    state = read_weights(file)
    blocks = [f"conv_block{block}.conv1.weight" for block in range(1, _BLOCKS + 1)]
    check_layers(state, [_FILTERS, *blocks, "fc1.weight"], file)
    if len(state[_FILTERS]) not in _VERSIONS:
        raise ValueError(
            f"{file} is for spectra of {len(state[_FILTERS])} frequencies; known are those of "
            f"{list(_VERSIONS)}"
        )
    network = _CNN14(state)
    # The file also holds a Fourier transform and the layer that names the sounds.
    own = {**state, "filters": state[_FILTERS]}
    network.load_state_dict({name: own[name] for name in network.state_dict() if name in own})
    return network
