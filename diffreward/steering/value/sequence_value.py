"""A small network that judges partly masked sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SequenceValue(nn.Module):
    """Convolutions over a sequence of ids and their mean, for `fit_soft_value`.

    It says 0 until it is trained. How much is masked can be seen, so that it needs no time; prompts
    are seen as far as they are symbols.

    Args:
        symbols: V; V itself is the mask.
        width: channels inside.
        depth: residual blocks of convolutions, each of them looking twice as far.
        kernel: of the convolutions, odd.
        seed: of the initial weights.
    """

    def __init__(
        self, symbols: int, width: int = 64, depth: int = 4, kernel: int = 7, seed: int = 0
    ) -> None:
        super().__init__()
        self._symbols = symbols
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.first = nn.Conv1d(symbols + 1, width, kernel, padding=kernel // 2)
            self.blocks = nn.ModuleList(
                nn.Conv1d(width, width, kernel, padding=2**i * (kernel // 2), dilation=2**i)
                for i in range(depth)
            )
            self.last = nn.Linear(2 * width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, x: Tensor, clean: Tensor, noise_to_signal: Tensor, prompts: Sequence[str]
    ) -> Tensor:
        """Judge B states, (B,) in nats.

        Args:
            x: ids, (B, L) of any dtype.
            clean: not looked at: it follows from x.
            noise_to_signal: not looked at.
            prompts: not looked at.
        """
        h = self.first(F.one_hot(x.long(), self._symbols + 1).float().transpose(1, 2))
        for block in self.blocks:
            h = h + block(h.relu())
        h = h.relu()
        found: Tensor = self.last(torch.cat([h.mean(2), h.amax(2)], 1)).squeeze(1)
        return found
