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


class ParticleFilter:
    """The weights of G systems of N particles: accumulated, and selected by when due.

    For a loop that someone else owns: `weigh` at each time, then `select` before each move.

    Args:
        systems: G (one per prompt, say).
        particles: N, in each system.
        resampling: scheme.
        ess_threshold: a system whose weights differ is resampled when its ESS is at most
            ess_threshold * N: with 0 never, with 1 whenever its weights differ.
        source: random numbers of the resampling; one generator per system, or one for all.
    """

    def __init__(
        self,
        systems: int,
        particles: int,
        resampling: Resampling = systematic,
        ess_threshold: float = 0.5,
        source: Source = None,
    ) -> None:
        self._resampling, self._threshold, self._source = resampling, ess_threshold, source
        self._rows = torch.arange(systems * particles).reshape(systems, particles)
        self._log_w = torch.zeros(systems, particles, dtype=torch.float64)
        self._log_evidence = torch.zeros(systems, dtype=torch.float64)
        self._weighed = torch.zeros(systems, dtype=torch.bool)  # since the last selection
        self._ess: list[Tensor] = []
        self._ancestors: list[Tensor] = []

    @property
    def log_weights(self) -> Tensor:
        """Since the last resampling, or of a search from the start, (G, N) float64 on the CPU."""
        return self._log_w

    @property
    def ess(self) -> Tensor:
        """Effective sample size after the last weighing, (G,)."""
        return self._ess[-1]

    def weigh(self, gains: Tensor) -> None:
        """Add to the log-weights, (G * N,) in nats, system by system; -inf kills a particle.

        Raises:
            FloatingPointError: if every particle of a system has weight zero, or a weight is NaN.
        """
        gains = gains.double().cpu().reshape(self._rows.shape)
        self._log_w = self._log_w + gains
        self._weighed |= (gains != 0).any(1)
        bad = self._log_w.isnan().any(1) | (self._log_w.amax(1) == -torch.inf)
        if bool(bad.any()):
            raise FloatingPointError(
                f"at step {len(self._ess)} all particles of system {bad.nonzero()[0].item()} have "
                "weight zero, or one has weight NaN"
            )
        self._ess.append(effective_sample_size(self._log_w))

    def select(self) -> Tensor:
        """The particle that each of the G * N goes on from, (G * N,) int64: itself, if none died.

        A particle never comes from another system.
        """
        uneven = (self._log_w != self._log_w[:, :1]).any(1)
        due = (self.ess <= self._threshold * self._rows.shape[1]) & uneven & self._weighed
        self._weighed &= ~due
        # Drawn for all systems, so that the numbers of one do not depend on the others.
        drawn = self._resampling(self._log_w.softmax(1), self._source)
        first = self._rows[:, :1]
        self._ancestors.append(torch.where(due[:, None], drawn, self._rows - first))
        self._log_evidence = self._log_evidence + torch.where(due, _log_mean(self._log_w), 0.0)
        # A search goes on comparing what particles have come to, not what they gained on a parent
        # that was not drawn by its weight.
        kept = self._log_w.gather(1, self._ancestors[-1])
        after = torch.zeros_like(kept) if self._resampling.consistent else kept
        self._log_w = torch.where(due[:, None], after, self._log_w)
        return (self._ancestors[-1] + first).flatten()

    def stay(self) -> Tensor:
        """In place of `weigh` and `select` when there is nothing to weigh: everyone goes on.

        It takes no random numbers. Returns (G * N,) as `select` does.
        """
        everyone = torch.full((len(self._rows),), self._rows.shape[1], dtype=torch.float64)
        self._ess.append(self._ess[-1] if self._ess else everyone)
        self._ancestors.append(self._rows - self._rows[:, :1])
        return self._rows.flatten()

    def cloud(self, x: X) -> Cloud[X]:
        """The result, with the particles where they have arrived."""
        evidence = self._log_evidence + _log_mean(self._log_w)
        moves = torch.stack(self._ancestors) if self._ancestors else self._rows.new_empty(0)
        return Cloud(
            x,
            self._log_w,
            evidence if self._resampling.consistent else None,
            torch.stack(self._ess),
            moves.reshape(-1, *self._rows.shape),
        )


def smc(
    model: FeynmanKac[X],
    particles: ParticleFilter,
    progress: Callable[[int, int], None] | None = None,
) -> Cloud[X]:
    """Run a particle filter on a Feynman-Kac model.

    Args:
        model: of as many particles as the filter.
        particles: a new filter.
        progress: called with the moves done and T after each move.

    Raises:
        FloatingPointError: if every particle of a system has weight zero, or a weight is NaN.
    """
    x = model.start()
    particles.weigh(model.log_potential(0, x))
    for t in range(1, model.num_moves + 1):
        x = model.move(t, x[particles.select()])
        particles.weigh(model.log_potential(t, x))
        if progress is not None:
            progress(t, model.num_moves)
    return particles.cloud(x)


def _log_mean(log_weights: Tensor) -> Tensor:
    return log_weights.logsumexp(1) - math.log(log_weights.shape[1])
