"""What a step of masked diffusion knows, and what ReMDM masks again of what is shown.

Source: Wang et al. (2025), arXiv:2503.00307, section 4; its alpha is 1 - m here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Move:
    """What a step knows.

    Args:
        clean: log-law of the clean symbols given the state, (B, L, V); what is shown is certain.
        ids: the state, (B, L) int64 with V for the mask.
        now: m(t), the share of masked positions before the step.
        after: m(s), that after it.
        left: steps, with this one.
        eta: strength of remasking.
        chance: probability that the symbol of each position had when it was revealed, (B, L); None
            before the first step.
    """

    clean: Tensor
    ids: Tensor
    now: float
    after: float
    left: int
    eta: float
    chance: Tensor | None

    @property
    def hidden(self) -> Tensor:
        """Which positions are masked, (B, L) bool."""
        return self.ids == self.clean.shape[-1]

    @property
    def most(self) -> float:
        """The largest probability of remasking that leaves a share m(s) masked."""
        return min(1.0, self.after / (1 - self.now)) if self.now < 1 else 1.0


Remasking = Callable[[Move], Tensor | float]
"""The probability with which each position that is shown is masked again: one, or (B, L)."""


def never(move: Move) -> float:
    """Nothing is masked again: the ancestral sampler."""
    return 0.0


def capped(move: Move) -> float:
    """At most eta: ReMDM-cap."""
    return min(move.eta, move.most)


def rescaled(move: Move) -> float:
    """A share eta of what is possible: ReMDM-rescale."""
    return move.eta * move.most


def looped(move: Move) -> float:
    """At most eta, while the share of masked positions rests: ReMDM-loop."""
    return capped(move) if move.now == move.after else 0.0


def by_doubt(move: Move) -> Tensor:
    """More where the symbol was unlikely when it was revealed: ReMDM-conf."""
    # Before the first step only fixed positions are shown, of which nobody doubts.
    chance = torch.ones_like(move.clean[..., 0]) if move.chance is None else move.chance
    hidden, doubt = move.hidden, (-chance).exp()
    doubt = doubt.masked_fill(hidden, 0.0)
    # The softmax over what is shown; a row in which nothing is has nothing to mask.
    return move.most * doubt / doubt.sum(1, keepdim=True).clamp(min=math.exp(-1))


Memory = Callable[[Move, Tensor], Tensor | None]
"""Maps a step and the states after it to what the next step wants to know of it, (B, L)."""


def nothing(move: Move, ids: Tensor) -> None:
    """No memory."""


def chances(move: Move, ids: Tensor) -> Tensor:
    """The probability that the symbol of each position had when it was revealed."""
    known = ids.masked_fill(ids == move.clean.shape[-1], 0)
    # What was shown before is certain now; its chance is the one of old.
    old = torch.ones_like(move.clean[..., 0]) if move.chance is None else move.chance
    new = move.clean.gather(-1, known[..., None]).squeeze(-1).exp()
    return torch.where(move.hidden, new, old)


Share = Callable[[Tensor], Tensor]
"""The share of masked positions at times in [0, 1]."""

Clock = Callable[[Share, Tensor], Tensor]
"""The share of masked positions that a sampler has at some times, (n,), given the forward one."""


def steady(share: Share, times: Tensor) -> Tensor:
    """That of the forward process."""
    return share(times)


def resting(share: Share, times: Tensor) -> Tensor:
    """Rests at 10 % between the times 0.55 and 0.05: the numbers of ReMDM-loop, section 4.2."""
    begin, end, rest = 0.55, 0.05, 0.1
    down = rest + (1 - rest) * share(((times - begin) / (1 - begin)).clamp(min=0))
    out = rest * share((times / end).clamp(max=1))
    return torch.where(times > begin, down, torch.where(times > end, rest, out))
