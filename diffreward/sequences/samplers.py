"""How masked diffusion goes from one time to an earlier one: a step of each sampler.

Sources: ancestral steps as in Sahoo et al. (2024), arXiv:2406.07524, equation 6; "first hitting" is
Zheng et al. (2024), arXiv:2409.02908; remasking is Wang et al. (2025), arXiv:2503.00307 (ReMDM),
whose alpha is 1 - m here; revealing by confidence is Chang et al. (2022), arXiv:2202.04200.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffreward.random import Source, rand
from diffreward.sequences.remasking import (
    Clock,
    Memory,
    Move,
    Remasking,
    Share,
    by_doubt,
    capped,
    chances,
    looped,
    never,
    nothing,
    rescaled,
    resting,
    steady,
)
from diffreward.transitions import Categorical


class Sampler(ABC):
    """One way of stepping."""

    @property
    def follows_noise(self) -> bool:
        """Whether a state at time t has a share m(t) masked, as a denoiser that sees t expects."""
        return True

    def shares(self, share: Share, times: Tensor) -> Tensor:
        """The share of masked positions that this sampler has at some times, (n,)."""
        return share(times)

    @abstractmethod
    def draw(self, move: Move, source: Source) -> Tensor:
        """The next states, (B, L) int64."""

    def log_probs(self, move: Move) -> Tensor:
        """The law of each position after the step, (B, L, V + 1).

        Raises:
            TypeError: if positions are not independent.
        """
        raise TypeError(
            f"the positions of a step of {type(self).__name__} are not independent, so that it has "
            "no log-probabilities; use the ancestral sampler"
        )

    def remember(self, move: Move, ids: Tensor) -> Tensor | None:
        """What the next step wants to know of this one, (B, L), if anything."""
        return None


@dataclass(frozen=True)
class Independent(Sampler):
    """Every position by itself: masked ones are revealed, shown ones may be masked again."""

    remasking: Remasking = never
    memory: Memory = nothing
    clock: Clock = steady

    @property
    def follows_noise(self) -> bool:
        return self.clock is steady

    def shares(self, share: Share, times: Tensor) -> Tensor:
        return self.clock(share, times)

    def draw(self, move: Move, source: Source) -> Tensor:
        return Categorical(self.log_probs(move)).sample(source)

    def log_probs(self, move: Move) -> Tensor:
        again = torch.as_tensor(self.remasking(move), device=move.ids.device).to(move.clean)
        # So many of the masked stay so that, with those masked anew, m(s) are; rounding may leave
        # a little less than nothing.
        kept = ((move.after - again * (1 - move.now)) / move.now).clamp(min=0)
        mask = torch.where(move.hidden, kept, again)[..., None]
        return torch.cat([(1 - mask).log() + move.clean, mask.log()], -1)

    def remember(self, move: Move, ids: Tensor) -> Tensor | None:
        return self.memory(move, ids)


@dataclass(frozen=True)
class FirstHitting(Sampler):
    """Reveals positions in an even random order, one at a step if there are enough steps.

    The times of the reveals do not matter to a denoiser that does not see them, and so are not
    drawn.
    """

    @property
    def follows_noise(self) -> bool:
        return False

    def draw(self, move: Move, source: Source) -> Tensor:
        order = rand(move.ids.shape, source, move.ids.device)
        masked = move.hidden.sum(1)
        number = (masked + move.left - 1) // move.left
        return _revealed(move, order, number, Categorical(move.clean).sample(source))


@dataclass(frozen=True)
class Confidence(Sampler):
    """Reveals where the symbol that was drawn is likeliest, as many as the noise says.

    It changes the law: what is likely by itself is shown first, and is drawn given less.
    """

    def draw(self, move: Move, source: Source) -> Tensor:
        symbols = Categorical(move.clean).sample(source)
        certainty = move.clean.gather(-1, symbols[..., None]).squeeze(-1)
        masked = move.hidden.sum(1)
        number = masked - (masked * (move.after / move.now)).round().long()
        return _revealed(move, -certainty, number, symbols)


def _revealed(move: Move, order: Tensor, number: Tensor, symbols: Tensor) -> Tensor:
    """The states with the first masked positions of each row revealed.

    Args:
        move: the step.
        order: by which masked positions are sorted, (B, L).
        number: how many of each row, (B,).
        symbols: what is there, (B, L).
    """
    rank = order.masked_fill(~move.hidden, torch.inf).argsort(1).argsort(1)
    return torch.where(rank < number[:, None], symbols, move.ids)


SAMPLERS: Mapping[str, Sampler] = {
    "ancestral": Independent(),
    "first_hitting": FirstHitting(),
    "remdm_cap": Independent(capped),
    "remdm_rescale": Independent(rescaled),
    "remdm_conf": Independent(by_doubt, chances),
    "remdm_loop": Independent(looped, clock=resting),
    "confidence": Confidence(),
}


def sharpened(logits: Tensor, temperature: float, nucleus: float) -> Tensor:
    """Logits of the law at a temperature, cut to its likeliest symbols, (B, L, V).

    Args:
        logits: (B, L, V).
        temperature: above 0.
        nucleus: the least probability that the symbols that are kept have together: Holtzman et
            al. (2020), ICLR, arXiv:1904.09751.
    """
    log_probs = (logits / temperature).log_softmax(-1)
    if nucleus == 1:
        return log_probs
    likeliest, symbols = log_probs.sort(-1, descending=True)
    enough = likeliest.exp().cumsum(-1) - likeliest.exp() >= nucleus
    return log_probs.masked_fill(enough.gather(-1, symbols.argsort(-1)), -torch.inf)
