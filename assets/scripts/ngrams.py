"""What counting alone knows about a text: the baselines of the text pipeline."""

import torch
from torch import Tensor

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""From counts that are trusted when seen once to counts that hardly matter."""


def unigram(train: Tensor, size: int) -> Tensor:
    """Return log-probabilities by frequency, add-one smoothed, of shape (V,).

    Args:
        train: Symbols, int64, of shape (T,).
        size: Number of symbols V.
    """
    counts = torch.bincount(train, minlength=size).double() + 1
    return (counts / counts.sum()).log()


def bigram(train: Tensor, size: int, strength: float) -> Tensor:
    """Return log-probabilities of the next symbol given the last one, of shape (V, V).

    Source: MacKay and Peto (1995), Natural Language Engineering 1(3), with the unigram as prior.

    Args:
        train: Symbols in their order, int64, of shape (T,).
        size: Number of symbols V.
        strength: How many observations the prior is worth.
    """
    pairs = torch.bincount(train[:-1] * size + train[1:], minlength=size**2).double()
    counts = pairs.view(size, size) + strength * unigram(train, size).exp()
    return (counts / counts.sum(1, keepdim=True)).log()


def best_bigram(train: Tensor, held: Tensor, size: int) -> Tensor:
    """Return the bigram, (V, V), of the strength that suits the held-out text best.

    Args:
        train: Symbols in their order, int64, of shape (T,).
        held: Held-out symbols in their order, of shape (S,).
        size: Number of symbols V.
    """
    tables = [bigram(train, size, strength) for strength in STRENGTHS]
    return max(tables, key=lambda table: table[held[:-1], held[1:]].sum().item())
