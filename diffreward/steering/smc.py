"""Sequential Monte Carlo for any Feynman-Kac model. Knows nothing of diffusion or of rewards.

Source: Chopin & Papaspiliopoulos (2020), *An Introduction to Sequential Monte Carlo*, algorithm
10.3: weights are accumulated until the effective sample size (ESS) is too small, and particles are
then resampled before they move, so that siblings part at once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from diffreward.random import Source
from diffreward.steering.resampling import Resampling, systematic


class Indexable(Protocol):
    """A batch of particles that fancy indexing can reorder."""

    def __getitem__(self, rows: Tensor) -> Self:
        """Some particles, in the order of rows."""
        ...


X = TypeVar("X", bound=Indexable)


class FeynmanKac(ABC, Generic[X]):
    """An initial law, T Markov kernels, and a potential after each.

    X holds G * N particles, system by system: rows g * N, ..., g * N + N - 1 belong to system g.
    """

    @property
    @abstractmethod
    def num_moves(self) -> int:
        """T."""

    @abstractmethod
    def start(self) -> X:
        """Draw the particles at time 0."""

    @abstractmethod
    def move(self, t: int, ancestors: X) -> X:
        """Move each ancestor at time t - 1 to time t, independently of the others."""

    @abstractmethod
    def log_potential(self, t: int, x: X) -> Tensor:
        """What each particle at time t adds to its log-weight: (G * N,) float64; -inf kills it."""


@dataclass(frozen=True)
class Cloud(Generic[X]):
    """G weighted systems of N particles.

    Args:
        x: the G * N particles at time T.
        log_weights: (G, N) float64, unnormalised: since the last resampling.
        log_evidence: estimate of the log normalising constant of each system, (G,), in nats; its
            exponential is unbiased. None if the resampling scheme is not consistent.
        ess: effective sample size after each time, before resampling, (T + 1, G), in [1, N].
        ancestors: of each particle in its own system, at each move, (T, G, N).
    """

    x: X
    log_weights: Tensor
    log_evidence: Tensor | None
    ess: Tensor
    ancestors: Tensor

    @property
    def weights(self) -> Tensor:
        """Normalised weights, (G, N)."""
        return self.log_weights.softmax(1)

    def origins(self) -> Tensor:
        """The particle of time 0 from which each descends, (G, N)."""
        origins = torch.arange(self.log_weights.shape[1]).expand(self.log_weights.shape)
        for ancestors in self.ancestors.cpu():
            origins = origins.gather(1, ancestors)
        return origins


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """1 / sum W^2 of each system: (G, N) -> (G,), N if all are equal, 1 if all but one are zero."""
    ess = 1 / log_weights.softmax(1).square().sum(1)
    return ess.clamp(max=log_weights.shape[1])  # which rounding alone can exceed


def smc(
    model: FeynmanKac[X],
    systems: int,
    particles: int,
    resampling: Resampling = systematic,
    ess_threshold: float = 0.5,
    source: Source = None,
    progress: Callable[[int, int], None] | None = None,
) -> Cloud[X]:
    """Run a particle filter on G independent systems of N particles.

    Args:
        model: of G * N particles.
        systems: G (one per prompt, say).
        particles: N, in each system.
        resampling: scheme.
        ess_threshold: a system whose weights differ is resampled when its ESS is at most
            ess_threshold * N: with 0 never, with 1 whenever its weights differ.
        source: random numbers of the resampling; one generator per system, or one for all.
        progress: called with the moves done and T after each move.

    Raises:
        FloatingPointError: if every particle of a system has weight zero, or a weight is NaN.
    """
    x = model.start()
    log_w = _checked(model.log_potential(0, x).reshape(systems, particles), 0)
    rows = torch.arange(systems * particles, device=log_w.device).reshape(systems, particles)
    log_evidence = log_w.new_zeros(systems)
    ess, ancestors = [effective_sample_size(log_w)], []
    for t in range(1, model.num_moves + 1):
        due = (ess[-1] <= ess_threshold * particles) & (log_w != log_w[:, :1]).any(1)
        # Drawn for all systems, so that the numbers of one do not depend on the others.
        drawn = resampling(log_w.softmax(1), source)
        ancestors.append(torch.where(due[:, None], drawn, rows - rows[:, :1]))
        log_evidence = log_evidence + torch.where(due, _log_mean(log_w), 0.0)
        log_w = torch.where(due[:, None], 0.0, log_w)
        x = model.move(t, x[(ancestors[-1] + rows[:, :1]).flatten()])
        log_w = _checked(log_w + model.log_potential(t, x).reshape(systems, particles), t)
        ess.append(effective_sample_size(log_w))
        if progress is not None:
            progress(t, model.num_moves)
    evidence = log_evidence + _log_mean(log_w) if resampling.consistent else None
    return Cloud(x, log_w, evidence, torch.stack(ess), torch.stack(ancestors))


def _log_mean(log_weights: Tensor) -> Tensor:
    return log_weights.logsumexp(1) - math.log(log_weights.shape[1])


def _checked(log_weights: Tensor, t: int) -> Tensor:
    bad = log_weights.isnan().any(1) | (log_weights.amax(1) == -torch.inf)
    if bool(bad.any()):
        raise FloatingPointError(
            f"at step {t} all particles of system {bad.nonzero()[0].item()} have weight zero, or "
            "one has weight NaN"
        )
    return log_weights
