"""A profile of a protein family or backbone: how likely each amino acid is at each site."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffreward.alphabets import PROTEIN, one_hot
from diffreward.reward import Reward
from diffreward.samples import Samples


class SiteProfile(Reward):
    """Mean log p(residue | site), in nats, below 0; sites are independent. Differentiable.

    Uniform guesses score -3.0. The most likely residue at each site scores highest, which is one
    sequence: no measure of how well residues go together. Prompts are not looked at.

    Args:
        file: an ``.npz`` with the array `log_p`, (L, V) or (1, L, V), of natural logarithms, as
            ``protein_mpnn_run.py --unconditional_probs_only 1`` of github.com/dauparas/ProteinMPNN
            writes it; its first 20 columns are the amino acids in alphabetical order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is no such array in it.
    """

    def __init__(self, file: str) -> None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"there is no profile at {path.absolute()}")
        with np.load(path) as arrays:
            shapes = {name: arrays[name].shape for name in arrays.files}
            shape = shapes.get("log_p", ())
            if len(shape) not in (2, 3) or shape[-1] < len(PROTEIN) or shape[:-2] not in ((), (1,)):
                raise ValueError(f"{path} has no array log_p of shape (L, 20 or more): {shapes}")
            log_p = torch.from_numpy(arrays["log_p"]).float()
        self.file = file
        self._log_p = log_p.reshape(shape[-2:])[:, : len(PROTEIN)]

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B samples and their B prompts to scores, (B,) float32.

        Raises:
            ValueError: if the sequences have another length than the profile.
        """
        rows = one_hot(samples, PROTEIN)
        if rows.shape[1] != len(self._log_p):
            raise ValueError(
                f"{self.file} is for {len(self._log_p)} sites, got sequences of {rows.shape[1]}"
            )
        return (rows * self._log_p.to(rows.device)).sum(-1).mean(-1)
