"""MPRA-DragoNN: the activity of an enhancer of 145 bp in two human cell lines.

Source: Movva et al. (2019), PLoS ONE 14, e0218073; network and weights (MIT licence):
github.com/kundajelab/MPRA-DragoNN, kipoi/ConvModel, trained on the Sharpr-MPRA measurements of
Ernst et al. (2016), Nature Biotechnology 34, 1180.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from diffreward.alphabets import DNA, one_hot
from diffreward.oracles.keras import convolution, read_weights
from diffreward.reward import Reward
from diffreward.samples import Samples

LENGTH = 145
"""In base pairs."""
TASKS = {"K562": 2, "K562 SV40P": 5, "HepG2": 8, "HepG2 SV40P": 11}
"""Outputs of the network: averages over replicates, before a minimal promoter or before SV40's."""
Task = Literal["K562", "K562 SV40P", "HepG2", "HepG2 SV40P"]

_ARRAYS = {"w": "kernel", "b": "bias"}
_PLACES = {
    **{
        f"conv{i}_{short}": f"conv1d_{i}/conv1d_{i}/{array}:0"
        for i in (1, 2, 3)
        for short, array in _ARRAYS.items()
    },
    **{
        f"bn{i}_{array}": f"batch_normalization_{i}/batch_normalization_{i}/{array}:0"
        for i in (1, 2, 3)
        for array in ("gamma", "beta", "moving_mean", "moving_variance")
    },
    **{f"dense_{short}": f"dense_1/dense_1/{array}:0" for short, array in _ARRAYS.items()},
}


class MPRADragoNN(Reward):
    """Predicted log-ratio of RNA to DNA, as z-scores of the assay. Differentiable.

    Random DNA scores -0.08 on average with a standard deviation of 0.18 (HepG2), and 145 times G
    scores 6.9: far from genomic DNA the network is wrong, and another measure has to judge what it
    found. It reads one strand, so that a sequence and its reverse complement score differently.

    Args:
        weights: ``ConvModel_pretrained.hdf5`` of the repository above (there ``pretrained.hdf5``;
            needs h5py), or its arrays as ``.npz``.
        task: the cell line, and SV40P for the stronger promoter.
        crop: "center" scores the middle 145 bp of longer sequences, "none" refuses them.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if the file needs h5py, which is missing.
        ValueError: if the file is of another network, or an argument is unknown.
    """

    def __init__(
        self, weights: str, task: Task = "HepG2", crop: Literal["none", "center"] = "none"
    ) -> None:
        if task not in TASKS or crop not in ("none", "center"):
            raise ValueError(
                f"task is one of {', '.join(TASKS)} and crop is none or center, got {task!r} and "
                f"{crop!r}"
            )
        self.task, self.crop = task, crop
        self._arrays = read_weights(weights, _PLACES)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return self.outputs(samples)[:, TASKS[self.task]]

    def outputs(self, samples: Samples) -> Tensor:
        """All outputs, (B, 12) float32: replicate 1, replicate 2 and average of each task in turn.

        Raises:
            TypeError: if the samples are no tokens.
            ValueError: if they are no DNA of the right length.
        """
        x = one_hot(samples, DNA)
        spare = x.shape[1] - LENGTH
        if spare < 0 or (spare > 0 and self.crop == "none"):
            hint = "" if spare < 0 else "; crop='center' scores the middle of longer ones"
            raise ValueError(f"expected sequences of {LENGTH} bp, got {x.shape[1]}{hint}")
        x = x[:, spare // 2 : spare // 2 + LENGTH]
        arrays = {name: array.to(x.device) for name, array in self._arrays.items()}
        for i in (1, 2, 3):
            x = convolution(x, arrays[f"conv{i}_w"], arrays[f"conv{i}_b"]).relu()
            x = _normalised(x, *(arrays[f"bn{i}_{name}"] for name in _NORMALISATION))
        return x.flatten(1) @ arrays["dense_w"] + arrays["dense_b"]


_NORMALISATION = ("moving_mean", "moving_variance", "gamma", "beta")


def _normalised(x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    # 1e-3 is the epsilon of Keras.
    return (x - mean) / torch.sqrt(variance + 1e-3) * gamma + beta
