"""Masked diffusion of a law that is known: the exact denoiser, its pipeline, and laws by sums."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from diffreward.enumeration import joint, number, sequences
from diffreward.pipelines.enumerable import random_law
from diffreward.sequences.denoisers import DenoiserOutput
from diffreward.sequences.pipeline import MaskedDiffusionPipeline
from diffreward.sequences.scheduler import MaskedDiffusionScheduler
from diffreward.sequences.tilted_law import conditionals


class ExactDenoiser(ModelMixin, ConfigMixin):
    """The law of each position given the others that are shown, of `random_law`."""

    @register_to_config
    def __init__(
        self,
        vocab_size: int = 3,
        length: int = 3,
        seed: int = 0,
        time_conditioning: bool = False,
    ) -> None:
        super().__init__()
        law = conditionals(random_law(vocab_size, length, seed), vocab_size)
        self.table = torch.nn.Parameter(law.log().float())
        self.rows, self.times = 0, []

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> DenoiserOutput:
        self.rows += len(sample)
        self.times.append(float(timestep))
        return DenoiserOutput(logits=self.table[number(sample, self.config.vocab_size + 1)])


def exact_pipeline(
    symbols: int = 3, length: int = 3, seed: int = 0, **scheduler: object
) -> MaskedDiffusionPipeline:
    """The pipeline of `random_law`, over the first letters of ACGT."""
    denoiser = ExactDenoiser(symbols, length, seed)
    steps = MaskedDiffusionScheduler(vocab_size=symbols, **scheduler)
    pipe = MaskedDiffusionPipeline(denoiser, steps, "ACGT"[:symbols], length)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def step_laws(pipe: MaskedDiffusionPipeline, num_steps: int) -> list[Tensor]:
    """The law of all states, ((V + 1)^L,) float64, at the start and after each step."""
    scheduler, length = pipe.scheduler, pipe.config.length
    scheduler.set_timesteps(num_steps)
    states = sequences(scheduler.mask + 1, length)
    laws = [(states == scheduler.mask).all(1).double()]
    with torch.no_grad():
        logits = pipe.denoiser(states, 0.0).logits.double()
        for t in scheduler.timesteps:
            each = scheduler.step_log_probs(logits, t, states).exp()
            laws.append(laws[-1] @ joint(each))
    return laws


def clean_law(pipe: MaskedDiffusionPipeline, num_steps: int) -> Tensor:
    """The law of the finished sequences, (V^L,) float64, with so many steps."""
    clean = sequences(pipe.scheduler.mask, pipe.config.length)
    return step_laws(pipe, num_steps)[-1][number(clean, pipe.scheduler.mask + 1)]


def excess(ids: Tensor, law: Tensor, symbols: int) -> float:
    """How many standard deviations chi-square is above its mean, for samples of a law.

    Args:
        ids: (n, L) int64.
        law: (symbols^L,); sequences of probability zero do not occur.
        symbols: V.
    """
    counts = torch.bincount(number(ids, symbols), minlength=len(law)).double()
    possible = law > 0
    assert (counts[~possible] == 0).all()
    expected = len(ids) * law[possible]
    freedom = int(possible.sum()) - 1
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum().item()
    return (chi_square - freedom) / (2 * freedom) ** 0.5
