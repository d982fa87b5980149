"""A small network that judges states of the shape (B, C, H, W): latents or pixels of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS, DEPTH = 8, 3

Embedding = Callable[[Sequence[str]], Tensor]
"""Maps B prompts to (B, E) float32 on the network's device; a function, and not a module."""


class LatentValue(nn.Module):
    """Convolutions over a state and its clean prediction, for a `ValueFunction`.

    It says 0 until it is trained. There is no normalisation inside: how bright an image is, or how
    strong a latent, may be what the reward is about.

    Args:
        channels: C.
        width: channels inside.
        embedding: of the prompts, if the value is to depend on them; it is asked at every update,
            so let it remember.
        embedded: E.
        seed: of the initial weights.
    """

    def __init__(
        self,
        channels: int,
        width: int = 64,
        embedding: Embedding | None = None,
        embedded: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._embedding, self._width = embedding, width
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.first = nn.Conv2d(2 * channels, width, 3, padding=1)
            self.down = nn.ModuleList(
                nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(DEPTH)
            )
            self.condition = nn.Sequential(
                nn.Linear(LEVELS + embedded, width), nn.SiLU(), nn.Linear(width, 2 * DEPTH * width)
            )
            self.last = nn.Linear(width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, x: Tensor, clean: Tensor, noise_to_signal: Tensor, prompts: Sequence[str]
    ) -> Tensor:
        """Judge B states, (B,) in nats.

        Args:
            x: states, (B, C, H, W) float32, at any scale: only their directions count, since
                schedulers do not agree on it.
            clean: their clean predictions, (B, C, H, W).
            noise_to_signal: (B,), from 0 to infinity.
            prompts: B; without an embedding they do not matter.
        """
        known = _waves(noise_to_signal)
        if self._embedding is not None:
            known = torch.cat([known, self._embedding(prompts)], 1)
        shape = (len(x), DEPTH, 2, self._width, 1, 1)
        gains, shifts = self.condition(known).reshape(shape).unbind(2)
        size = x.square().mean((1, 2, 3), keepdim=True).sqrt()
        h = self.first(torch.cat([x / size, clean], 1))
        for layer, gain, shift in zip(self.down, gains.unbind(1), shifts.unbind(1), strict=True):
            h = layer(F.silu(h * (1 + gain) + shift))
        nats: Tensor = self.last(F.silu(h).mean((2, 3)))
        return nats[:, 0]


def _waves(noise_to_signal: Tensor) -> Tensor:
    """Cosines of the level, (B, LEVELS): of tanh(log(noise_to_signal) / 4), finite everywhere."""
    share = 1 - 1 / (1 + noise_to_signal.sqrt())
    return torch.cos(math.pi * share[:, None] * torch.arange(1, LEVELS + 1).to(share))
