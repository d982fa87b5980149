"""DRAKES for DNA with the structure of the authors' code, written from its description.

Source: Wang et al. (2025), ICLR, arXiv:2410.13643, and the code beside it. All is as there, whether
right or not: a graph is built for every step, also for those whose result is detached; afterwards
both networks see every state again; both have parameters with gradients.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEVER = -1e6
"""Their logarithm of 0."""
EPSILON, FINAL_TIME = 1e-3, 1e-5
"""The share that is never masked, and where the grid of times ends."""


@dataclass(frozen=True)
class Released:
    """One update.

    Args:
        network: in training; logits (B, L, 4) of weights (B, L, 5), the mask's last.
        reference: its copy, not frozen.
        reward: of one-hot rows (B, L, 4), differentiable: (B,).
        num_steps: T.
        soft_steps: the last ones, with gradient.
        alpha: in the unit of their configuration.
        temperature: of the Gumbel softmax.
    """

    network: nn.Module
    reference: nn.Module
    reward: Callable[[Tensor], Tensor]
    num_steps: int
    soft_steps: int
    alpha: float
    temperature: float = 1.0

    def loss(self, start: Tensor, gumbel: Iterator[Tensor]) -> Tensor:
        """The loss, with its graph.

        Args:
            start: one-hot rows of masks, (B, L, 5).
            gumbel: noise of each step, (B, L, 5).
        """
        states, end = self._sampled(start, gumbel)
        distance = torch.stack([self._distance(x, k) for k, x in enumerate(states)]).sum(0)
        weights = end[..., :-1]
        hard = F.one_hot(weights.argmax(-1), weights.shape[-1])
        scores = self.reward(weights + (hard - weights).detach())
        return -scores.mean() + self.alpha * distance.mean()

    def _masked(self, k: int) -> float:
        """The move chance at the start of step k."""
        times = torch.linspace(1, FINAL_TIME, self.num_steps + 1, dtype=torch.float64)
        return float((1 - EPSILON) * times[k])

    def _sampled(self, x: Tensor, gumbel: Iterator[Tensor]) -> tuple[list[Tensor], Tensor]:
        """What every step started from, and what the last one led to."""
        states = []
        for k in range(self.num_steps):
            states.append(x)
            stays, noise = self._masked(k + 1), next(gumbel)
            log_p = _subs(self.network, x) + torch.tensor(self._masked(k) - stays).log()
            noisy = F.pad(log_p, (0, 1), value=float(torch.tensor(stays).log())) + noise
            kept = 1 - x[..., -1:]
            if k < self.num_steps - self.soft_steps:
                drawn = F.one_hot(noisy.argmax(-1), x.shape[-1])
                x = (kept * x + (1 - kept) * drawn).detach()
            else:
                x = kept * x + (1 - kept) * (noisy / self.temperature).softmax(-1)
        return states, x

    def _distance(self, x: Tensor, k: int) -> Tensor:
        """Their KL of a step, (B,)."""
        log_p, log_q = _subs(self.network, x), _subs(self.reference, x)
        p, q = log_p.exp(), log_q.exp()
        terms = (1 - x[..., -1:]) * (q - p + p * (log_p - log_q)) / self._masked(k)
        return (terms * x[..., :-1]).sum((1, 2))


def _subs(network: nn.Module, x: Tensor) -> Tensor:
    """Log-probabilities of the clean symbols, (B, L, 4); a position is what is largest there."""
    largest = x.argmax(-1)
    shown = F.one_hot(largest, x.shape[-1])[..., :-1]
    certain = torch.where(shown == 1, 0.0, NEVER)
    log_p = network(x).logits.log_softmax(-1)
    return torch.where((largest == x.shape[-1] - 1)[..., None], log_p, certain)
