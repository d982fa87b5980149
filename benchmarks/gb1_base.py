"""The base model of the four sites of GB1: masked diffusion of what a first screen finds.

A laboratory that has measured all single and double mutants knows 2,243 variants of 160,000. The
model is fitted to those that work; the best variants have three or four mutations, and the law of
the model, which is a table here, says how far away they are.
"""

import copy
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from diffreward.alphabets import PROTEIN, ids_of
from diffreward.enumeration import number, sequences
from diffreward.pipelines.masked_diffusion import MaskedDiffusion
from diffreward.random import stream
from diffreward.rewards.landscape import GB1
from diffreward.samples import Tokens
from diffreward.sequences.bound import corrupt, negative_elbo, stratified
from diffreward.sequences.denoisers import TransformerDenoiser
from diffreward.sequences.exact_laws import any_order_law
from diffreward.sequences.pipeline import MaskedDiffusionPipeline
from diffreward.sequences.scheduler import MaskedDiffusionScheduler

FILE = Path("../shared/data/oracles/flip_gb1/four_mutations_full_data.csv.zip")
SITES, WILD_TYPE, WORKS = 4, "VDGV", 0.5
"""The wild type has fitness 1; what has half of it works."""
STEPS = 16
FITNESS = GB1(str(FILE), missing=0.0)
"""A variant that nobody saw in the selected pool counts as dead."""


@cache
def landscape() -> tuple[Tensor, Tensor]:
    """All 160,000 variants, and their fitness."""
    return sequences(len(PROTEIN), SITES), FITNESS.landscape.table


def mutations(ids: Tensor) -> Tensor:
    """How many sites differ from the wild type, (B,)."""
    return (ids != torch.tensor(ids_of([WILD_TYPE], PROTEIN))).sum(1)


@cache
def screened() -> Tensor:
    """The variants with at most two mutations that work, (N, 4)."""
    ids, fitness = landscape()
    return ids[(mutations(ids) <= 2) & (fitness >= WORKS)]


@cache
def trained(updates: int = 80, batch: int = 64) -> MaskedDiffusionPipeline:
    """The pipeline; it stops before it knows by heart that nothing has three mutations."""
    torch.manual_seed(0)
    denoiser = TransformerDenoiser(len(PROTEIN), hidden=32, layers=1, heads=4, max_length=SITES)
    scheduler, source = MaskedDiffusionScheduler(vocab_size=len(PROTEIN)), stream(0, "base")
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=3e-3, weight_decay=0.01)
    for _ in range(updates):
        clean = screened()[torch.randint(len(screened()), (batch,), generator=source)]
        corrupted = corrupt(scheduler, clean, stratified(batch, source), source)
        optimizer.zero_grad()
        negative_elbo(denoiser, clean, corrupted).mean().backward()
        optimizer.step()
    return MaskedDiffusionPipeline(denoiser.eval(), scheduler, PROTEIN, SITES)


def model() -> MaskedDiffusion:
    """The base model, to be changed at will."""
    pipe = trained()
    denoiser = copy.deepcopy(pipe.denoiser)
    return MaskedDiffusion(MaskedDiffusionPipeline(denoiser, pipe.scheduler, PROTEIN, SITES), STEPS)


@cache
def law() -> Tensor:
    """Of its samples if sites are revealed one by one, (160000,) float64."""
    with torch.no_grad():
        return any_order_law(trained().denoiser, SITES)


def rank(samples: Tokens) -> int:
    """Of the best sample among all variants, from 1."""
    _, fitness = landscape()
    return 1 + int((fitness > fitness[number(samples.ids, len(PROTEIN))].max()).sum())
