"""The law of one reverse step of masked diffusion, and its relaxations for gradients.

Source: Sahoo et al. (2024), NeurIPS, arXiv:2406.07524, equation 7. Relaxations: Jang et al. (2017),
arXiv:1611.01144 (Gumbel-softmax, straight-through); "released" is the update in the authors' code
of DRAKES, Wang et al. (2025), ICLR, arXiv:2410.13643.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffreward.random import Source
from diffreward.transitions import Categorical, Transition

Relaxation = Literal["straight_through", "soft", "released"]


@dataclass(frozen=True)
class Unmasking(Transition):
    """Each masked position is revealed as one of V symbols or stays masked; others stay.

    Args:
        state: x_k: ids, (B, L) int64 with V for the mask, or their relaxation, (B, L, V + 1).
        logits: of what becomes of a masked position, (B, L, V + 1), unnormalised, in nats; the last
            is to stay masked. Any finite numbers where nothing is masked.
        temperature: of the Gumbel softmax in `rsample`.
        relaxation: of `rsample`. "straight_through": one-hot in value. "soft": weights, of which a
            position's mask gives away what it loses. "released": (1 - m) x + m y, for the mask's
            weight m and a draw y, so that the mask's weight does not vanish.
    """

    state: Tensor
    logits: Tensor
    temperature: float = 1.0
    relaxation: Relaxation = "straight_through"

    def __getitem__(self, rows: Tensor) -> Unmasking:
        return Unmasking(self.state[rows], self.logits[rows], self.temperature, self.relaxation)

    def _ids(self) -> Tensor:
        return self.state.argmax(-1) if self.state.ndim == 3 else self.state

    def _weights(self) -> Tensor:
        if self.state.ndim == 3:
            return self.state
        return F.one_hot(self.state, self.logits.shape[-1]).to(self.logits.dtype)

    def _hidden(self) -> Tensor:
        """Whether a position is masked, (B, L)."""
        return self._ids() == self.logits.shape[-1] - 1

    def sample(self, source: Source = None) -> Tensor:
        """Draw ids, (B, L) int64."""
        return torch.where(self._hidden(), Categorical(self.logits).sample(source), self._ids())

    def rsample(self, source: Source = None) -> Tensor:
        """The relaxation of a draw, (B, L, V + 1)."""
        hard = self.relaxation == "straight_through"
        drawn = Categorical(self.logits, self.temperature).relaxed(source, hard)
        now = self._weights()
        mask = now[..., -1:]
        if self.relaxation == "released":
            return (1 - mask) * now + mask * drawn
        return F.pad(now[..., :-1], (0, 1)) + mask * drawn

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-mass of ids x, (B, L) int64 -> (B,), in nats."""
        revealed = self.logits.log_softmax(-1).gather(-1, x[..., None]).squeeze(-1)
        kept = torch.zeros_like(revealed).masked_fill(x != self._ids(), -torch.inf)
        return torch.where(self._hidden(), revealed, kept).sum(-1)

    def kl(self, other: Transition) -> Tensor:
        """Of relaxed states it is linear in the weights of the masks."""
        per_position = self._divergence(other)
        return (self._weights()[..., -1] * per_position).sum(-1).to(self.logits.dtype)

    def tilted(self, direction: Tensor) -> Unmasking:
        return Unmasking(self.state, self.logits + direction, self.temperature, self.relaxation)

    def _divergence(self, other: Transition) -> Tensor:
        ours, theirs = self.logits, self._same_kind(other).logits
        return Categorical(ours).divergence(Categorical(theirs))

    @staticmethod
    def _same_kind(other: Transition) -> Unmasking:
        if not isinstance(other, Unmasking):
            raise TypeError(f"KL of an Unmasking to a {type(other).__name__} is not defined")
        return other
