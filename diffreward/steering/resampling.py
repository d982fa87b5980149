"""Resampling: N ancestors drawn by the weights of N particles, for G systems at once.

A scheme maps weights (G, N), not necessarily normalised, to ancestors (G, N) in 0, ..., N - 1. All
are unbiased: particle n has N W[n] offspring on average, so one of weight zero never has any. They
differ in the noise that they add to that.

Source: Chopin & Papaspiliopoulos (2020), *An Introduction to Sequential Monte Carlo*, chapter 9;
SSP: Gerber, Chopin & Whiteley (2019), Annals of Statistics, arXiv:1707.01845, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffreward.random import Source, rand


@dataclass(frozen=True)
class Resampling:
    """A scheme.

    Args:
        draw: maps weights (G, N), float64 with rows of sum 1, and random numbers (one generator per
            system, or one for all) to ancestors (G, N), int64.
        consistent: whether estimates converge as N grows; if not, no evidence is reported.
    """

    draw: Callable[[Tensor, Source], Tensor]
    consistent: bool = True

    def __call__(self, weights: Tensor, source: Source = None) -> Tensor:
        """Draw ancestors, (G, N) -> (G, N) int64.

        Raises:
            ValueError: if weights are negative or not finite, or all of a system are zero.
        """
        weights = weights.double()
        total = weights.sum(1, keepdim=True)
        if not bool((weights >= 0).all() and (total > 0).all() and total.isfinite().all()):
            raise ValueError("weights are finite, not negative, and not all zero in a system")
        return self.draw(weights / total, source)


def _multinomial(weights: Tensor, source: Source) -> Tensor:
    return _inverse_cdf(weights, rand(weights.shape, source, weights.device))


def _stratified(weights: Tensor, source: Source) -> Tensor:
    return _inverse_cdf(weights, _spread(rand(weights.shape, source, weights.device)))


def _systematic(weights: Tensor, source: Source) -> Tensor:
    u = rand((len(weights), 1), source, weights.device)
    return _inverse_cdf(weights, _spread(u.expand_as(weights)))


def _residual(weights: Tensor, source: Source) -> Tensor:
    expected = weights.shape[1] * weights
    counts = expected.floor()
    certain = _repeated(counts)
    drawn = _inverse_cdf(expected - counts, rand(weights.shape, source, weights.device))
    return torch.where(certain < weights.shape[1], certain, drawn)


def _ssp(weights: Tensor, source: Source) -> Tensor:
    systems, n = weights.shape
    u = rand((systems, n), source, weights.device).unbind(1)
    expected = weights * n
    counts = expected.floor()
    fractions = (expected - counts).unbind(1)
    rows = torch.arange(systems, device=weights.device)
    held, a = torch.zeros_like(rows), fractions[0]  # the particle whose fraction is still open
    for j in range(1, n):
        # Srinivasan's step: of two open fractions one becomes 0 or 1, and the other keeps the rest.
        b, total = fractions[j], a + fractions[j]
        above = total >= 1
        j_stays = torch.where(above, u[j] * (2 - total) < 1 - b, u[j] * total < b)
        settled = torch.where(j_stays, held, j)
        counts[rows, settled] += above.double()
        held, a = torch.where(j_stays, j, held), torch.where(above, total - 1, total)
    counts[rows, held] += n - counts.sum(1)  # 0, or 1 where the last fraction has come to 1
    return _repeated(counts)


def _winner(weights: Tensor, source: Source) -> Tensor:
    u = rand((len(weights), 1), source, weights.device)
    return _inverse_cdf(weights, u).expand_as(weights)


multinomial = Resampling(_multinomial)
"""N independent draws: the noisiest; kept for comparison with papers."""

residual = Resampling(_residual)
"""floor(N W) copies of each particle, and independent draws for the rest."""

stratified = Resampling(_stratified)
"""One uniform number in each of N equal intervals."""

systematic = Resampling(_systematic)
"""One uniform number, repeated at distance 1 / N: |offspring - N W| < 1. The default."""

ssp = Resampling(_ssp)
"""Srinivasan sampling process: |offspring - N W| < 1, and negatively associated, which systematic
resampling is not. A loop over the particles."""

winner = Resampling(_winner, consistent=False)
"""One draw, copied N times: the selection among siblings of SVDD (Li et al., 2024,
arXiv:2408.08252, algorithm 1). A search: a larger N does not bring it nearer to the target."""


def top(kept: int) -> Resampling:
    """The best few by weight, each about N / kept times, nothing left to chance: beam search.

    Of equal weights the first is the better. Weights are compared, so any scale gives the same.

    Args:
        kept: how many of N.
    """

    def draw(weights: Tensor, source: Source) -> Tensor:
        n = weights.shape[1]
        best = weights.argsort(dim=1, descending=True, stable=True)[:, :kept]
        # A dead particle is never kept: the best one takes its place.
        alive = weights.gather(1, best) > 0
        return torch.where(alive, best, best[:, :1])[:, torch.arange(n) * best.shape[1] // n]

    return Resampling(draw, consistent=False)


def _spread(u: Tensor) -> Tensor:
    """The points (n + u[n]) / N, n = 0, ..., N - 1."""
    n = u.shape[1]
    return (torch.arange(n, device=u.device) + u) / n


def _inverse_cdf(weights: Tensor, points: Tensor) -> Tensor:
    """The particle under each point of [0, 1].

    Rounding can bring a point up to 1; it belongs to the last particle of positive weight, not to a
    dead one behind it.
    """
    cdf = weights.cumsum(1)
    particles = torch.searchsorted(cdf, points * cdf[:, -1:], right=True)
    last_alive = weights.shape[1] - 1 - (weights.flip(1) > 0).int().argmax(1, keepdim=True)
    return torch.minimum(particles, last_alive)


def _repeated(counts: Tensor) -> Tensor:
    """Particle n counts[:, n] times, in ascending order; N where the counts fall short of N."""
    slots = torch.arange(counts.shape[1], device=counts.device, dtype=counts.dtype)
    return torch.searchsorted(counts.cumsum(1), slots.expand_as(counts).contiguous(), right=True)
