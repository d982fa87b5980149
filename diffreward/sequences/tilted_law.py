"""A law of short sequences and a reward as tables: the tilted law and all values, summed.

There are V^L sequences and (V + 1)^L states, sequences some of whose symbols are masked; both are
in the order of `diffreward.enumeration.number`, with V for the mask. What samplers make of a
denoiser is in `diffreward.sequences.exact_laws`.

Source: Levine (2018), arXiv:1805.00909, section 2.4 (the tilted law as an optimum, soft values).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffreward.enumeration import joint, number, sequences


@dataclass(frozen=True)
class TiltedLaw:
    """A law of sequences, what a reward makes of it, and the reward's value in every state.

    The objective of a law q is E_q[r] - alpha KL(q || law); the best q is law exp(r / alpha) / Z.

    Args:
        law: of the V^L sequences, all positive, (V^L,) float64.
        rewards: of them, (V^L,), finite.
        symbols: V.
        alpha: reward per nat.

    Raises:
        ValueError: if the law is no positive one, a reward is missing, or alpha is not positive.
    """

    law: Tensor
    rewards: Tensor
    symbols: int
    alpha: float

    def __post_init__(self) -> None:
        length_of(self.law, self.symbols)
        if not bool((self.law > 0).all()) or abs(float(self.law.sum()) - 1) > 1e-6:
            raise ValueError(
                f"a law is positive and sums to 1, got {float(self.law.min())} at least and the "
                f"sum {float(self.law.sum())}"
            )
        if self.rewards.shape != self.law.shape or not bool(self.rewards.isfinite().all()):
            raise ValueError(f"there is one finite reward for each of {len(self.law)} sequences")
        if self.alpha <= 0:
            raise ValueError(f"alpha is above 0, got {self.alpha}")

    @cached_property
    def optimum(self) -> Tensor:
        """The best law, (V^L,) float64."""
        return self._log_tilted.softmax(0)

    @cached_property
    def best(self) -> float:
        """The objective of the best law, alpha log Z: no law has more."""
        return self.alpha * float(self._log_tilted.logsumexp(0))

    @property
    def _log_tilted(self) -> Tensor:
        return self.law.log() + self.rewards.double() / self.alpha

    def mean(self, law: Tensor) -> Tensor:
        """The mean reward of a law, (V^L,) -> ()."""
        return law @ self.rewards.to(law)

    def divergence(self, law: Tensor) -> Tensor:
        """KL(law || this law), (V^L,) -> (), in nats."""
        return kl(law, self.law)

    def objective(self, law: Tensor) -> Tensor:
        """E[r] - alpha KL, (V^L,) -> (); it is `best` - alpha KL(law || optimum)."""
        return self.mean(law) - self.alpha * self.divergence(law)

    @cached_property
    def soft_values(self) -> Tensor:
        """Of each state alpha log E[exp(r / alpha) | state], ((V + 1)^L,) float64."""
        tilted = completions(self._log_tilted.exp(), self.symbols)
        return self.alpha * (tilted / completions(self.law, self.symbols)).log()

    @cached_property
    def mean_values(self) -> Tensor:
        """Of each state E[r | state], ((V + 1)^L,) float64: what regression on rewards learns."""
        total = completions(self.law * self.rewards, self.symbols)
        return total / completions(self.law, self.symbols)


@dataclass(frozen=True)
class StateTable:
    """The entry of a table for each state: a `StateValue` of `diffreward.steer_diffusion`.

    Args:
        values: ((V + 1)^L,).
        symbols: V.
    """

    values: Tensor
    symbols: int

    def __call__(self, states: Tensor, k: int, prompts: Sequence[str]) -> Tensor:
        """Map ids (B, L), or in a multilinear way weights (B, L, V + 1), to values, (B,)."""
        values = self.values.to(states.device)
        if states.ndim == 3:
            return joint(states) @ values.to(states)
        return values[number(states, self.symbols + 1)]


def length_of(law: Tensor, symbols: int) -> int:
    """L, from a table of V^L numbers.

    Raises:
        ValueError: if the table is of another size.
    """
    length = 0
    while symbols**length < len(law):
        length += 1
    if symbols < 2 or law.shape != (symbols**length,) or length == 0:
        raise ValueError(f"a table is of V^L numbers, got {tuple(law.shape)} and V = {symbols}")
    return length


def completions(table: Tensor, symbols: int) -> Tensor:
    """The sum of a table over all sequences that a state can become, (V^L,) -> ((V + 1)^L,)."""
    length = length_of(table, symbols)
    sums = table.double().reshape([symbols] * length)
    for i in range(length):
        sums = torch.cat([sums, sums.sum(i, keepdim=True)], i)
    return sums.flatten()


def conditionals(law: Tensor, symbols: int) -> Tensor:
    """Of each position given the others that are not masked, ((V + 1)^L, L, V) float64."""
    length = length_of(law, symbols)
    states, places = sequences(symbols + 1, length), mask_places(symbols, length)
    others = number(states, symbols + 1)[:, None] - states * places
    masses = completions(law, symbols)[others[..., None] + torch.arange(symbols) * places[:, None]]
    return masses / masses.sum(-1, keepdim=True)


def mask_places(symbols: int, length: int) -> Tensor:
    """What a position's symbol counts in the number of a state, (L,)."""
    return (symbols + 1) ** torch.arange(length - 1, -1, -1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of two laws on the same sequences, (n,) -> (), in nats."""
    return torch.xlogy(p, p / q).sum()


def markov_chain(start: Tensor, steps: Tensor, length: int) -> Tensor:
    """The law of sequences whose symbols follow each other in a Markov chain, (V^L,).

    Args:
        start: of the first symbol, (V,).
        steps: of a symbol given the one before it, (V, V).
        length: L.
    """
    ids = sequences(len(start), length)
    return start[ids[:, 0]] * steps[ids[:, :-1], ids[:, 1:]].prod(1)
