"""Tiny pipelines of sequences: columns of the matrix of methods beside those of families.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from diffreward.alphabets import DNA, PROTEIN
from diffreward.pipelines.masked_diffusion import MaskedDiffusion
from diffreward.policy import LoRA
from diffreward.samples import Samples, tokens
from diffreward.sequences.denoisers import ConvDenoiser, TransformerDenoiser
from diffreward.sequences.pipeline import MaskedDiffusionPipeline
from diffreward.sequences.scheduler import MaskedDiffusionScheduler

LENGTH = 12


@dataclass(frozen=True)
class SequenceFamily:
    """A pipeline of sequences.

    Args:
        name: of the row.
        denoiser: makes its network.
        alphabet: its symbols.
        prompts: a free one, and one with a symbol given.
        adaptation: of the network.
    """

    name: str
    denoiser: Callable[[], nn.Module]
    alphabet: str
    prompts: Sequence[str]
    adaptation: LoRA

    def model(self, folder: Path) -> MaskedDiffusion:
        """The same one every time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            denoiser = self.denoiser()
        scheduler = MaskedDiffusionScheduler(len(self.alphabet))
        pipe = MaskedDiffusionPipeline(denoiser, scheduler, self.alphabet, LENGTH)
        return MaskedDiffusion(pipe, num_steps=5)

    def reward(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """A mean of numbers of the symbols, which differ at every place; differentiable."""
        ids, symbols = tokens(samples), torch.arange(1.0, len(self.alphabet) + 1)
        values = symbols[ids] if ids.ndim == 2 else ids @ symbols
        return (values * torch.linspace(1, 2, LENGTH)).mean(1)

    @torch.no_grad()
    def prediction(self, model: MaskedDiffusion) -> Tensor:
        """Where all is masked."""
        return model.predict(model.prior(1), torch.ones(1), model.encode([""]))

    def reloaded(self, model: MaskedDiffusion, folder: Path) -> MaskedDiffusion:
        """The plain pipeline with the saved adapters, loaded by PEFT."""
        plain = self.model(folder)
        plain.network = PeftModel.from_pretrained(plain.network, folder / "saved")
        return plain


ROWS = [
    SequenceFamily(
        "DNA, convolutions",
        lambda: ConvDenoiser(hidden=8, stacks=1, dilations=(1, 4)),
        DNA,
        ("", "G" + "_" * (LENGTH - 1)),
        LoRA(2, targets=("conv", "conv_out")),
    ),
    SequenceFamily(
        "protein, transformer",
        lambda: TransformerDenoiser(hidden=16, layers=2, heads=2, max_length=LENGTH),
        PROTEIN,
        ("", "M" + "_" * (LENGTH - 1)),
        LoRA(2),
    ),
]
