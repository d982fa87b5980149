"""Properties of proteins that follow from their letters: hydropathy, stability, charge.

Sources: GRAVY, Kyte and Doolittle (1982), J. Mol. Biol. 157:105; instability index, Guruprasad et
al. (1990), Protein Eng. 4:155; net charge by pK values, Bjellqvist et al. (1994), Electrophoresis
15:529. The tables of numbers are Biopython's, whose `Bio.SeqUtils.ProtParam` gives the same values.
All are sums over letters or pairs of letters, and easy to exploit: isoleucine alone has the highest
hydropathy.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffreward.alphabets import PROTEIN, one_hot
from diffreward.reward import Reward
from diffreward.samples import Samples


class Hydropathy(Reward):
    """The mean hydropathy of the residues (GRAVY), in [-4.5, 4.5]; differentiable.

    Below 0 is hydrophilic: minus this reward asks for soluble proteins.

    Raises:
        ImportError: if Biopython is not installed.
    """

    def __init__(self) -> None:
        self._scale = _column(_biopython("ProtParamData").kd)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        letters = one_hot(samples, PROTEIN)
        return (letters @ self._scale.to(letters.device)).mean(1)


class InVivoStability(Reward):
    """Minus the instability index; differentiable. Above -40 is called stable.

    The index is 10 / L times a sum of weights of neighbouring pairs, which were found by comparing
    proteins of long and of short life in cells. It knows nothing about a fold.

    Raises:
        ImportError: if Biopython is not installed.
    """

    def __init__(self) -> None:
        weights = _biopython("ProtParamData").DIWV
        self._pairs = torch.stack([_column(weights[first]) for first in PROTEIN])

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        letters = one_hot(samples, PROTEIN)
        weights = (letters[:, :-1] @ self._pairs.to(letters.device)) * letters[:, 1:]
        return -10 / letters.shape[1] * weights.sum((1, 2))


class NetCharge(Reward):
    """The net charge, in elementary charges, at a pH; differentiable.

    Args:
        ph: of the solution.

    Raises:
        ImportError: if Biopython is not installed.
        ValueError: if there is no such pH.
    """

    def __init__(self, ph: float = 7.0) -> None:
        if not 0 <= ph <= 14:
            raise ValueError(f"pH is 0 to 14, got {ph}")
        self.ph = ph
        tables = _biopython("IsoelectricPoint")
        positive, negative = dict(tables.positive_pKs), dict(tables.negative_pKs)
        ends = positive.pop("Nterm"), negative.pop("Cterm")
        first = {letter: tables.pKnterminal.get(letter, ends[0]) for letter in PROTEIN}
        last = {letter: tables.pKcterminal.get(letter, ends[1]) for letter in PROTEIN}
        self._inside = self._charge(positive, 1) + self._charge(negative, -1)
        self._first, self._last = self._charge(first, 1), self._charge(last, -1)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        letters = one_hot(samples, PROTEIN)
        inside, first, last = (
            column.to(letters.device) for column in (self._inside, self._first, self._last)
        )
        return (letters @ inside).sum(1) + letters[:, 0] @ first + letters[:, -1] @ last

    def _charge(self, pks: Mapping[str, float], sign: int) -> Tensor:
        """Henderson and Hasselbalch's mean charge of each letter, (V,)."""
        charges = {letter: sign / (1 + 10 ** (sign * (self.ph - pk))) for letter, pk in pks.items()}
        return _column({letter: charges.get(letter, 0.0) for letter in PROTEIN})


def _column(values: Mapping[str, float]) -> Tensor:
    return torch.tensor([values[letter] for letter in PROTEIN])


def _biopython(module: str) -> Any:
    try:
        return importlib.import_module(f"Bio.SeqUtils.{module}")
    except ImportError as error:
        raise ImportError("properties of proteins take Biopython: pip install biopython") from error
