"""The exact law of what a sampler makes of a denoiser, for sequences that are short enough.

Tables are over the (V + 1)^L states, sequences with masks, in the order of
`diffreward.enumeration.number` with V for the mask, or over the V^L sequences without.

Source: Zheng et al. (2024), arXiv:2409.02908: a denoiser that is not told the time reveals one
position after the other, in random order. A sampler with K steps reveals several at once, which are
then independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from diffreward.enumeration import joint, number, sequences
from diffreward.sequences.denoisers.interface import DenoiserOutput
from diffreward.sequences.tilted_law import conditionals, length_of, mask_places


class TableDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A trainable table of logits for each state, that any denoiser of short sequences is.

    It is not told the time. Of relaxed states its logits are multilinear.

    Args:
        vocab_size: V.
        length: L.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, vocab_size: int = 4, length: int = 3) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros((vocab_size + 1) ** length, length, vocab_size))

    def forward(
        self, sample: Tensor, timestep: Tensor | float | None = None, return_dict: bool = True
    ) -> DenoiserOutput | tuple[Tensor]:
        """Logits, (B, L, V), at ids (B, L) or weights (B, L, V + 1)."""
        if sample.ndim == 2:
            logits = self.table[number(sample, self.config.vocab_size + 1)]
        else:
            logits = torch.einsum("bn,nlv->blv", joint(sample.to(self.table)), self.table)
        return DenoiserOutput(logits) if return_dict else (logits,)


def exact_denoiser(law: Tensor, symbols: int) -> TableDenoiser:
    """The denoiser of a positive law, (V^L,)."""
    denoiser: TableDenoiser = TableDenoiser(symbols, length_of(law, symbols))
    denoiser.table.data = conditionals(law, symbols).log().float()
    return denoiser


def conditionals_of(denoiser: ModelMixin, length: int, rows: int = 4096) -> Tensor:
    """What a denoiser that is not told the time says in each state, ((V + 1)^L, L, V) float64.

    Args:
        denoiser: differentiable.
        length: L.
        rows: states that go through it at a time.
    """
    states = sequences(denoiser.config.vocab_size + 1, length)
    logits = [denoiser(block).logits for block in states.split(rows)]
    return torch.cat(logits).double().softmax(-1)


def any_order_masses(p: Tensor) -> Tensor:
    """How likely each state is on the way if positions are revealed one by one, in random order.

    Differentiable. The masses of clean states are the law of the samples, see `law_of`; those of
    states with equally many masks sum to 1.

    Args:
        p: of each position in each state, ((V + 1)^L, L, V), as of `conditionals`.

    Returns:
        ((V + 1)^L,).
    """
    _, length, symbols = p.shape
    masked = sequences(symbols + 1, length) == symbols
    shift = (symbols - torch.arange(symbols)) * mask_places(symbols, length)[:, None]
    mass = torch.zeros(len(p), dtype=p.dtype)
    mass[-1] = 1
    for hidden in range(length, 0, -1):
        rows = (masked.sum(1) == hidden).nonzero().squeeze(1)
        flow = (mass[rows] / hidden)[:, None, None] * p[rows]
        there, open_ = rows[:, None, None] - shift, masked[rows]
        mass = mass.index_add(0, there[open_].flatten(), flow[open_].flatten())
    return mass


def step_masses(p: Tensor, masked_shares: Sequence[float]) -> list[Tensor]:
    """How likely each state is after each step of the ancestral sampler, K + 1 of ((V + 1)^L,).

    A step reveals each masked position by itself. Takes (2 V + 1)^L numbers a step.

    Args:
        p: of each position in each state, ((V + 1)^L, L, V).
        masked_shares: the probability that a position is masked at each time, K + 1 from 1 to 0.
    """
    _, length, symbols = p.shape
    masked, places = sequences(symbols + 1, length) == symbols, mask_places(symbols, length)
    pattern = number(masked.long(), 2)
    groups = [
        ((pattern == i).nonzero().squeeze(1), open_)
        for i, open_ in enumerate(sequences(2, length).bool())
        if i > 0
    ]
    masses = [(torch.arange(len(p)) == len(p) - 1).to(p)]
    for now, then in pairwise(masked_shares):
        stays = torch.full_like(p[..., :1], then / now)
        full, mass = torch.cat([(1 - stays) * p, stays], -1), masses[-1]
        after = mass.masked_fill(masked.any(1), 0)
        for rows, open_ in groups:
            choices = sequences(symbols + 1, int(open_.sum()))
            there = rows[:, None] + ((choices - symbols) * places[open_]).sum(1)
            flow = mass[rows, None] * joint(full[rows][:, open_])
            after = after.index_add(0, there.flatten(), flow.flatten())
        masses.append(after)
    return masses


def law_of(masses: Tensor, symbols: int) -> Tensor:
    """The masses of the clean states, ((V + 1)^L,) -> (V^L,)."""
    return masses[number(sequences(symbols, length_of(masses, symbols + 1)), symbols + 1)]


def any_order_law(denoiser: ModelMixin, length: int) -> Tensor:
    """The law of infinitely many steps of a denoiser, (V^L,) float64; differentiable."""
    return law_of(any_order_masses(conditionals_of(denoiser, length)), denoiser.config.vocab_size)
