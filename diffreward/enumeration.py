"""Numbers for sequences: all of them in order, and laws on them as vectors.

A sequence of L symbols out of S has the number whose digits in base S are its symbols, the first
one leading.
"""

from __future__ import annotations

import torch
from torch import Tensor


def number(ids: Tensor, base: int) -> Tensor:
    """The numbers of states or sequences, (..., L) -> (...)."""
    places = base ** torch.arange(ids.shape[-1] - 1, -1, -1, device=ids.device)
    return (ids * places).sum(-1)


def sequences(symbols: int, length: int) -> Tensor:
    """All sequences in the order of their numbers, (symbols^length, length)."""
    places = symbols ** torch.arange(length - 1, -1, -1)
    return torch.arange(symbols**length)[:, None] // places % symbols


def joint(weights: Tensor) -> Tensor:
    """The product of L laws on S symbols, (B, L, S) -> (B, S^L)."""
    product = weights[:, 0]
    for i in range(1, weights.shape[1]):
        product = (product[:, :, None] * weights[:, i, None]).flatten(1)
    return product
