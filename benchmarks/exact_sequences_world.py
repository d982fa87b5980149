"""The instance of `exact_sequences.py`: measured DNA binding, and a Markov chain as the model."""

from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin

from diffreward.alphabets import DNA
from diffreward.pipelines.masked_diffusion import MaskedDiffusion
from diffreward.rewards.landscape import TFBinding
from diffreward.sequences.pipeline import MaskedDiffusionPipeline
from diffreward.sequences.scheduler import MaskedDiffusionScheduler
from diffreward.sequences.tilted_law import TiltedLaw, markov_chain

LENGTH, ALPHA = 6, 0.1


def instance(file: str) -> TiltedLaw:
    """The model, the reward and what is best."""
    random = np.random.default_rng(0)
    start, steps = random.dirichlet([5] * 4), random.dirichlet([3] * 4, 4)
    law = markov_chain(torch.tensor(start), torch.tensor(steps), LENGTH)
    rewards = TFBinding(file, prefix="G", suffix="C").landscape.table
    return TiltedLaw(law, rewards, len(DNA), ALPHA)


def chain(denoiser: ModelMixin, num_steps: int, **settings: Any) -> MaskedDiffusion:
    """A denoiser as a chain."""
    pipe = MaskedDiffusionPipeline(
        denoiser, MaskedDiffusionScheduler(vocab_size=len(DNA)), DNA, LENGTH
    )
    return MaskedDiffusion(pipe, num_steps, **settings)
