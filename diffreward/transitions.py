"""The law of one denoising step, p(x_{k+1} | x_k), for a batch of independent chains.

Every algorithm in this package meets a diffusion model only through these laws, and only through
``sample``, ``rsample``, ``log_prob`` and ``kl`` (the vocabulary of `torch.distributions`, with
random numbers that are passed in). A new state space is a new subclass, not a new branch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffreward.random import Source, rand, randn

Kind = TypeVar("Kind", bound="Transition")


class Transition(ABC):
    """A batch of B independent conditional laws on states of shape ``event``: a dataclass."""

    @abstractmethod
    def __getitem__(self, rows: Tensor) -> Self:
        """The laws of some chains, in the order of rows (int64 of any length)."""

    def detach(self) -> Self:
        """The same laws without the graph that made them."""
        tensors = {name: x.detach() for name, x in vars(self).items() if torch.is_tensor(x)}
        return type(self)(**{**vars(self), **tensors})

    @abstractmethod
    def sample(self, source: Source = None) -> Tensor:
        """Draw one state per chain, (B, *event), without gradient."""

    @abstractmethod
    def rsample(self, source: Source = None) -> Tensor:
        """Draw one state per chain, differentiable in the parameters of the law."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density (or log-mass) of x, summed over the event: (B, *event) -> (B,), in nats.

        Raises:
            TypeError: if the law has no density.
        """

    @abstractmethod
    def kl(self, other: Transition) -> Tensor:
        """KL(self || other) of each chain, (B,), in nats, >= 0.

        Raises:
            TypeError: if the other law is of another kind, or has no density.
        """

    @abstractmethod
    def tilted(self, direction: Tensor) -> Transition:
        """The laws proportional to p(x) exp(<direction, x>); itself where there is no choice.

        Args:
            direction: (B, *event), for tokens (B, L, V): a gradient of a log-density, say.
        """


@dataclass(frozen=True)
class Gaussian(Transition):
    """N(mean, std^2 I): a step of DDPM, of DDIM with eta > 0, or of a flow turned into an SDE.

    Args:
        mean: (B, *event), float32 or float64.
        std: (B,), strictly positive: a deterministic step is a `Dirac`.

    Raises:
        ValueError: if some std is not positive (or NaN), as far as they are on the CPU.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.std.shape != self.mean.shape[:1]:
            raise ValueError(
                f"std has one value per chain, ({len(self.mean)},), got {tuple(self.std.shape)}"
            )
        # On an accelerator, looking would make the host wait at every step.
        if self.std.device.type == "cpu" and not bool((self.std > 0).all()):
            raise ValueError(f"Gaussian needs std > 0 in every chain, got {self.std.min().item()}")

    def __getitem__(self, rows: Tensor) -> Gaussian:
        return Gaussian(self.mean[rows], self.std[rows])

    def _scale(self) -> Tensor:
        return self.std.reshape(-1, *[1] * (self.mean.ndim - 1))

    def sample(self, source: Source = None) -> Tensor:
        return self.rsample(source).detach()

    def rsample(self, source: Source = None) -> Tensor:
        noise = randn(self.mean.shape, source, self.mean.device)
        return self.mean + self._scale() * noise.to(self.mean.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        z = (x - self.mean) / self._scale()
        per_dimension = -0.5 * z**2 - self._scale().log() - 0.5 * math.log(2 * math.pi)
        return per_dimension.flatten(1).sum(1)

    def kl(self, other: Transition) -> Tensor:
        if not isinstance(other, Gaussian):
            raise TypeError(f"KL of a Gaussian to a {type(other).__name__} is not defined")
        ratio = self._scale() / other._scale()
        shift = (self.mean - other.mean) / other._scale()
        per_dimension = 0.5 * (ratio**2 + shift**2 - 1) - ratio.log()
        return per_dimension.expand_as(self.mean).flatten(1).sum(1)

    def tilted(self, direction: Tensor) -> Gaussian:
        return Gaussian(self.mean + self._scale() ** 2 * direction, self.std)


@dataclass(frozen=True)
class Categorical(Transition):
    """L independent categorical variables over V tokens: a step of masked or uniform diffusion.

    Args:
        logits: (B, L, V), unnormalised log-probabilities; -inf forbids a token.
        temperature: of the straight-through Gumbel softmax in `rsample` (Jang et al., 2017,
            arXiv:1611.01144).
    """

    logits: Tensor
    temperature: float = 1.0

    def __getitem__(self, rows: Tensor) -> Categorical:
        return Categorical(self.logits[rows], self.temperature)

    def _gumbel(self, source: Source) -> Tensor:
        # In float64 and from the exponential race: a float32 uniform cuts the tail of the Gumbel
        # law at about 17 and so changes the law of rare tokens (Zheng et al., 2024,
        # arXiv:2409.02908).
        uniform = rand(self.logits.shape, source, self.logits.device)
        return -(-(1 - uniform).log()).log()

    def sample(self, source: Source = None) -> Tensor:
        """Draw token ids, (B, L) int64."""
        return (self.logits.detach().double() + self._gumbel(source)).argmax(-1)

    def rsample(self, source: Source = None) -> Tensor:
        """One-hot in value, softmax in gradient: (B, L, V)."""
        return self.relaxed(source, straight_through=True)

    def relaxed(self, source: Source, straight_through: bool) -> Tensor:
        """The Gumbel softmax of a draw, (B, L, V); its value is rounded if straight-through."""
        noisy = self.logits + self._gumbel(source).to(self.logits.dtype)
        soft = (noisy / self.temperature).softmax(-1)
        if not straight_through:
            return soft
        hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
        return hard + soft - soft.detach()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-mass of token ids x, (B, L) int64 -> (B,), in nats."""
        return self.logits.log_softmax(-1).gather(-1, x[..., None]).squeeze(-1).sum(-1)

    def kl(self, other: Transition) -> Tensor:
        if not isinstance(other, Categorical):
            raise TypeError(f"KL of a Categorical to a {type(other).__name__} is not defined")
        return self.divergence(other).sum(-1).to(self.logits.dtype)

    def divergence(self, other: Categorical) -> Tensor:
        """The KL of each variable, (B, L) float64, in nats."""
        log_p, log_q = self.logits.log_softmax(-1), other.logits.log_softmax(-1)
        # Where p = 0 the term is 0 whatever q; the masked difference keeps the gradient finite.
        impossible = log_p == -torch.inf
        difference = (log_p.masked_fill(impossible, 0) - log_q.masked_fill(impossible, 0)).double()
        return (log_p.double().exp() * difference).sum(-1)

    def tilted(self, direction: Tensor) -> Categorical:
        return Categorical(self.logits + direction, self.temperature)


@dataclass(frozen=True)
class Dirac(Transition):
    """A deterministic step, such as one of an ODE. It can be drawn from, but has no density.

    Args:
        x: (B, *event), the next states.
    """

    x: Tensor

    def __getitem__(self, rows: Tensor) -> Dirac:
        return Dirac(self.x[rows])

    def sample(self, source: Source = None) -> Tensor:
        return self.x.detach()

    def rsample(self, source: Source = None) -> Tensor:
        return self.x

    def log_prob(self, x: Tensor) -> Tensor:
        raise TypeError("a deterministic step has no density; use a stochastic sampler (eta > 0)")

    def kl(self, other: Transition) -> Tensor:
        raise TypeError("a deterministic step has no density; use a stochastic sampler (eta > 0)")

    def tilted(self, direction: Tensor) -> Dirac:
        return self


def concatenate(parts: Sequence[Kind]) -> Kind:
    """One batch of the chains of all parts: dataclasses of one kind, whose tensors have B rows.

    Raises:
        TypeError: if the parts are of several kinds.
        ValueError: if there are no parts.
    """
    if not parts:
        raise ValueError("cannot concatenate zero batches of transitions")
    kinds = {type(part) for part in parts}
    if len(kinds) > 1:
        raise TypeError(f"cannot concatenate {sorted(kind.__name__ for kind in kinds)}")
    columns = {
        name: torch.cat([vars(part)[name] for part in parts]) if torch.is_tensor(value) else value
        for name, value in vars(parts[0]).items()
    }
    return type(parts[0])(**columns)
