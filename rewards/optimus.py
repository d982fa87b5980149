"""Optimus 5-Prime: how many ribosomes a human 5'UTR of 50 nt loads onto its messenger RNA.

Source: Sample et al. (2019), Nature Biotechnology 37, 803; the networks by which their genetic
algorithm designed sequences, github.com/pjsample/human_5utr_modeling, modeling/saved_models. Those
weights are under GPL-3.0: they stay on the user's machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffreward.alphabets import RNA, ids_of, one_hot
from diffreward.oracles.keras import convolution, read_weights
from diffreward.reward import Reward
from diffreward.samples import Samples

LENGTH = 50
"""In nucleotides."""
START = "AUGG"
"""What follows the UTR in the reporter, and in all that the network has seen."""

_ARRAYS = ("convolution1d_1", "convolution1d_2", "dense_1", "dense_2")
_PLACES = {
    f"{layer}_{short}": f"model_weights/{layer}/{layer}_{array}:0"
    for layer in _ARRAYS
    for short, array in (("w", "W"), ("b", "b"))
}


class Optimus5Prime(Reward):
    """Predicted mean ribosome load, as z-scores, mostly -3 to 2; differentiable.

    Random sequences have mean 0.05 and standard deviation 0.83, a start codon out of frame costs
    about 0.9, and 50 times A or U scores 1.3: a high score says little about a real UTR.

    Args:
        weights: ``evolution_model.hdf5`` or ``retrained_evolution_model.hdf5`` of the repository
            above (needs h5py), or its arrays as ``.npz``.
        alphabet: of the samples, `RNA` or `DNA`, in which T stands for U.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if the file needs h5py, which is missing.
        ValueError: if the file is of another network, or the alphabet is another.
    """

    def __init__(self, weights: str, alphabet: str = RNA) -> None:
        if alphabet.replace("T", "U") != RNA:
            raise ValueError(f"expected the alphabet ACGU or ACGT, got {alphabet}")
        self.alphabet = alphabet
        self._arrays = read_weights(weights, _PLACES)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B sequences to scores, (B,) float32.

        Raises:
            TypeError: if the samples are no tokens.
            ValueError: if they are of another alphabet or length.
        """
        rows = one_hot(samples, self.alphabet)
        if rows.shape[1] != LENGTH:
            raise ValueError(f"expected 5'UTRs of {LENGTH} nt, got {rows.shape[1]}")
        start = torch.eye(len(RNA), device=rows.device)[torch.tensor(ids_of([START], RNA))]
        x = torch.cat([rows, start.expand(len(rows), -1, -1)], dim=1)
        arrays = {name: array.to(x.device) for name, array in self._arrays.items()}
        for layer in _ARRAYS[:2]:
            x = convolution(x, _flat(arrays[layer + "_w"]), arrays[layer + "_b"]).relu()
        x = (x.flatten(1) @ arrays["dense_1_w"] + arrays["dense_1_b"]).relu()
        return (x @ arrays["dense_2_w"] + arrays["dense_2_b"])[:, 0]


def _flat(kernel: Tensor) -> Tensor:
    """A kernel (K, C, D): the HDF5 file of Keras 1 has (K, 1, C, D)."""
    return kernel.reshape(kernel.shape[0], *kernel.shape[-2:])
