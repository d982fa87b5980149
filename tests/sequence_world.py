"""Masked diffusion of a law that is known: a table of logits in a pipeline, and counters."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffreward.pipelines.enumerable import random_law
from diffreward.pipelines.masked_diffusion import MaskedDiffusion
from diffreward.reward import RewardFunction
from diffreward.samples import Samples
from diffreward.sequences.exact_laws import exact_denoiser
from diffreward.sequences.pipeline import MaskedDiffusionPipeline
from diffreward.sequences.scheduler import MaskedDiffusionScheduler


def table_world(
    law: Tensor | None = None,
    symbols: int = 3,
    length: int = 3,
    num_steps: int = 4,
    noise: str = "log_linear",
    **settings: object,
) -> MaskedDiffusion:
    """The exact model of a law, by default a random one."""
    law = random_law(symbols, length) if law is None else law
    scheduler = MaskedDiffusionScheduler(symbols, noise=noise)
    denoiser = exact_denoiser(law, symbols)
    pipe = MaskedDiffusionPipeline(denoiser, scheduler, "ACGT"[:symbols], length)
    return MaskedDiffusion(pipe, num_steps, **settings)


class Rows:
    """Counts the rows that go through a network, and remembers them."""

    def __init__(self, network: nn.Module) -> None:
        self.seen: list[Tensor] = []
        network.register_forward_pre_hook(self._add)

    def _add(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.seen.append(inputs[0])

    @property
    def count(self) -> int:
        return sum(len(rows) for rows in self.seen)


class Counted:
    """A reward that counts the samples it is asked about."""

    def __init__(self, reward: RewardFunction) -> None:
        self.reward, self.count = reward, 0

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        self.count += len(prompts)
        return self.reward(samples, prompts)


def tempting(symbols: int, length: int) -> Tensor:
    """Rewards in [0, 1] with neighbours of very different worth, (V^L,): reproducible, no noise."""
    return (torch.arange(symbols**length) * 0.6180339887498949) % 1
