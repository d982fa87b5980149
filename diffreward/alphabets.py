"""Alphabets of biological sequences, and sequences as one-hot rows in a given one.

A mask is no symbol of an alphabet: what is masked cannot be decoded to `Tokens`, and so no reward
can mistake it for the N of another tool.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from diffreward.samples import Samples, Tokens, tokens

DNA = "ACGT"
RNA = "ACGU"
PROTEIN = "ACDEFGHIKLMNPQRSTVWY"


def one_hot(samples: Samples, alphabet: str) -> Tensor:
    """The sequences as rows over an alphabet, (B, L, V) float32.

    Relaxed sequences keep their gradient. The columns follow `alphabet`, in whatever order the
    samples have the same symbols.

    Raises:
        TypeError: if the samples are no tokens.
        ValueError: if the samples are over other symbols.
    """
    ids = tokens(samples)
    assert isinstance(samples, Tokens)
    if sorted(samples.alphabet) != sorted(alphabet):
        raise ValueError(f"this reward scores sequences of {alphabet}, got {samples.alphabet}")
    rows = ids.float() if ids.ndim == 3 else F.one_hot(ids, len(alphabet)).float()
    return rows[..., [samples.alphabet.index(symbol) for symbol in alphabet]]


def ids_of(strings: Sequence[str], alphabet: str) -> list[list[int]]:
    """The numbers of the symbols of each string; lower case is read as upper case.

    Raises:
        ValueError: naming the first string with another symbol.
    """
    numbers = {symbol: i for i, symbol in enumerate(alphabet)}
    found = []
    for string in strings:
        unknown = sorted({symbol for symbol in string.upper() if symbol not in numbers})
        if unknown:
            raise ValueError(f"{string[:40]!r} has {unknown}, which are not among {alphabet}")
        found.append([numbers[symbol] for symbol in string.upper()])
    return found
