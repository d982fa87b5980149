"""Markov chains as a yardstick: the likelihood that a model of sequences has to beat."""

import torch
from torch import Tensor

PRIORS = (0.5, 2.0, 8.0, 32.0)
"""Counts added to each symbol; the one that suits the held-out sequences best is taken."""


def markov_nats(training: Tensor, held_out: Tensor, order: int, symbols: int) -> float:
    """Return the held-out negative log-likelihood per symbol, of the best of `PRIORS`, in nats.

    Near its beginning a sequence is read by the chains of lower orders.

    Args:
        training: Ids, of shape (N, L).
        held_out: Ids, of shape (M, L).
        order: Symbols that the next one depends on.
        symbols: Size of the alphabet.
    """
    counts = [_counts(training, seen, symbols) for seen in range(order + 1)]
    return min(_nats(held_out, counts, prior) for prior in PRIORS)


def _counts(rows: Tensor, seen: int, symbols: int) -> Tensor:
    """Return how often each symbol follows each ``seen`` symbols, (symbols^seen, symbols)."""
    windows = rows.unfold(1, seen + 1, 1).flatten(0, 1)
    numbers = (windows * _places(seen + 1, symbols)).sum(1)
    return numbers.bincount(minlength=symbols ** (seen + 1)).view(-1, symbols).double()


def _nats(rows: Tensor, counts: list[Tensor], prior: float) -> float:
    total = 0.0
    for i in range(rows.shape[1]):
        seen = min(i, len(counts) - 1)
        places = _places(seen, counts[0].shape[1])
        before = (rows[:, i - seen : i] * places).sum(1)
        law = (counts[seen] + prior) / (counts[seen] + prior).sum(1, keepdim=True)
        total -= float(law[before, rows[:, i]].log().sum())
    return total / rows.numel()


def _places(seen: int, symbols: int) -> Tensor:
    """Return the place values of ``seen`` symbols as digits of a number, the first one leading."""
    return symbols ** torch.arange(seen - 1, -1, -1)
