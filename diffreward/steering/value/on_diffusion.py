"""Soft values of the states of a `Diffusion`: recorded, fitted, and asked for by `SVDD`.

Source: as of `diffreward.steering.value.fitting`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffreward.diffusion import Diffusion, decode, rollout
from diffreward.random import rand, stream
from diffreward.reward import RewardFunction, score
from diffreward.steering.value.fitting import Fit, nats
from diffreward.steering.value.recording import STATES, RecordedStates


def record_paths(
    diffusion: Diffusion,
    reward: RewardFunction,
    prompts: Sequence[str],
    samples: int = 1024,
    seed: int = 0,
    rows: int = 64,
) -> RecordedStates:
    """Sample, and keep states of each path with the reward at its end.

    Args:
        diffusion: the model, unchanged.
        reward: of finished samples.
        prompts: taken in turn, one per sample.
        samples: S.
        seed: of all random numbers.
        rows: samples at a time in network, decoder and reward.

    Returns:
        Of each path, states at equal distances from a random one on. There is no clean prediction,
        in whose place the state stands, and noise_to_signal is the number of steps to go over that
        of steps gone.
    """
    asked = [prompts[i % len(prompts)] for i in range(samples)]
    start, noise = ([stream(seed, name, i) for i in range(samples)] for name in ("start", "noise"))
    path = rollout(diffusion, diffusion.encode(asked), start, noise, rows)
    with torch.no_grad():
        rewards = score(reward, decode(diffusion, path.clean, rows), asked).detach().cpu()
    total = diffusion.num_steps
    offset = torch.cat([rand((1,), stream(seed, "states", i)) for i in range(samples)])
    kept = min(STATES, total)
    steps = ((torch.arange(kept) + offset[:, None]) / kept * total).long()
    everyone = torch.arange(samples).repeat_interleave(kept)
    x = path.states.cpu()[everyone, steps.flatten()]
    ratio = ((total - steps) / steps).flatten().float()
    return RecordedStates(x, x, ratio, everyone, rewards, tuple(asked))


@dataclass(frozen=True)
class FittedValue:
    """Judges states on the way: a `value` for `diffreward.steer_diffusion`.

    Args:
        network: as it was fitted to what `record_paths` gave.
        fit: how it came about.
        num_steps: K of the diffusion.
    """

    network: nn.Module
    fit: Fit
    num_steps: int

    @torch.no_grad()
    def __call__(self, x: Tensor, k: int, prompts: Sequence[str]) -> Tensor:
        """The soft values of states x_k, (B,) float32, in units of reward."""
        ratio = (self.num_steps - k) / k if k else torch.inf
        ratios = torch.full((len(x),), ratio, device=x.device)
        return self.fit.offset + nats(self.network, x, x, ratios, prompts) / self.fit.scale
