"""Proteins: fluorescent variants of avGFP by two oracles, and four sites of GB1, all measured.

python benchmarks/protein.py run all --experiment avgfp --output runs/avgfp
python benchmarks/protein.py table runs/avgfp --experiment avgfp > benchmarks/avgfp.md

And the same with gb1. Needs assets/protein and the measurements, ../shared/data.
"""

import argparse
from functools import cache
from pathlib import Path

import gb1_base
import torch
from evolution import Evolution
from sequences import Experiment, Searched, Steered, Trained, main
from torch import Tensor

from diffreward.algorithms.ddpo import DDPO
from diffreward.algorithms.drakes import DRAKES
from diffreward.alphabets import PROTEIN, ids_of
from diffreward.penalty import Penalty
from diffreward.pipelines.masked_diffusion import MaskedDiffusion
from diffreward.random import stream
from diffreward.reward import RewardFunction
from diffreward.rewards.variant_effects import VariantEffects
from diffreward.samples import Tokens
from diffreward.sequence_metrics import diversity
from diffreward.steering import SVDD, BestOfN, FKSteering

ASSETS, MEASURED = Path("assets/protein"), Path("../shared/data/avgfp/avgfp.tsv")
EACH = 32
"""Oracle calls that a method may spend per sample."""
Method = Steered | Trained | Searched | None

AVGFP_STEPS, AVGFP_ALPHA, AVGFP_SAMPLES, TEMPERATURE = 16, 0.2, 32, 1.4
AVGFP_TITLE = f"""# avGFP: bright variants far from the wild type

Made by `python benchmarks/protein.py`. Masked diffusion of the variants of avGFP that fluoresce, at
temperature {TEMPERATURE}, so that samples have many mutations and most of them are dark;
{AVGFP_STEPS} steps, {AVGFP_SAMPLES} samples a seed, alpha = {AVGFP_ALPHA}. The reward is a network
of additive effects and a curve, fitted to one half of the measured variants (log10 of the
fluorescence: the wild type has 3.72, dark is 1.3), the judge the same network fitted to the other
half. Each method may ask for {EACH * AVGFP_SAMPLES} rewards, but equal variants are asked for once
by those that do not train. Random mutants have as many mutations of the wild type as the model's
samples, on average; evolution makes 8 generations of one each, and stays near the wild type. Both
return the best {AVGFP_SAMPLES} that they saw. bfloat16.

Best: by the reward; judged: what the judge says of that one. Bright: share of samples that the
judge puts above 3. Mutations: mean number, from the wild type. New: share of samples that are no
measured variant. Unknown: mean number of mutations that no measured variant has. Diversity: 1 -
mean share of equal positions of two samples. Means over seeds ± standard error.
"""

GB1_ALPHA, GB1_SAMPLES = 0.5, 32
GB1_TITLE = f"""# GB1: four sites, all measured

Made by `python benchmarks/protein.py`. All 160,000 variants of V39, D40, G41 and V54 are known
(those without a measurement count as dead); the reward is the fitness, of which the wild type has
1 and the best variant 8.76. The model is masked diffusion fitted to the variants of at most two
mutations with a fitness of {gb1_base.WORKS} or more, what a first screen would find: the best have
three or four, and hardly any mass under it. {gb1_base.STEPS} steps, {GB1_SAMPLES} samples a seed,
alpha = {GB1_ALPHA}. Each method may ask for {EACH * GB1_SAMPLES} fitnesses, but equal variants are
asked for once by those that do not train. Random mutants and evolution start from the screened
variants and return the best {GB1_SAMPLES}. The exact row draws from the law that steering aims
for, model exp(fitness / alpha); it asks for all.

Gradients of the fitness (guided SMC, DRAKES) are those of its multilinear extension, which asks for
all variants at once, too: no laboratory has them.

Rank: of the best sample among all variants. Distinct: share of samples that are no repetition.
Diversity: 1 - mean share of equal sites of two samples. Means over seeds ± standard error.
"""


def methods(
    alpha: float, steps: int, samples: int, start: Tensor, mutants: int, particles: int, rate: float
) -> dict[str, Method]:
    """The rows: all ask for about `EACH` new rewards per sample.

    Args:
        alpha: reward per nat.
        steps: of the model.
        samples: of a run.
        start: what evolution begins with.
        mutants: mutations of a random mutant.
        particles: of the filters, at four scored states: more than eight, `EACH` rows in all, where
            many are equal.
        rate: of learning.
    """
    quarter, eighth, scale, calls = steps // 4, steps // 8, 1 / alpha, EACH * samples
    updates, some = calls // 32, particles // 2

    def drakes(weight: float) -> Trained:
        method = DRAKES(steps // 2, Penalty("kl", weight, "sum"), checkpointing=False)
        return Trained(method, updates, 32, rate)

    # In these units the loss is that of E[reward] - alpha KL.
    gradient = DDPO(
        0.2, advantage_clip=10, scale="none", reduction="sum", penalty=Penalty("kl", alpha, "sum")
    )
    return {
        "model": None,
        "random mutants": Searched(Evolution(start, PROTEIN, calls, mutations=mutants)),
        "evolution": Searched(Evolution(start, PROTEIN, calls, generations=8)),
        f"best of {EACH}": Steered(BestOfN(EACH)),
        f"SMC, {particles} particles": Steered(
            FKSteering(particles, scale, interval=quarter, start=0.25, select="draw")
        ),
        "guided SMC (TDS), 4": Steered(
            FKSteering(4, scale, interval=eighth, start=0.125, guidance=1.0, select="draw")
        ),
        f"FK steering (max), {particles}": Steered(
            FKSteering(particles, scale, "max", interval=quarter, start=0.25, select="best")
        ),
        f"SVDD, M = {some}": Steered(SVDD(some, scale, eighth, 0.125)),
        f"SVDD, M = {some}, argmax (a search)": Steered(SVDD(some, float("inf"), eighth, 0.125)),
        "policy gradient (DDPO with KL)": Trained(gradient, updates, 32, rate),
        "DRAKES, no KL": drakes(0.0),
        "DRAKES": drakes(alpha),
    }


def avgfp() -> Experiment:
    """A reward that was learnt, and a judge that was learnt from other variants."""
    reward, second = (
        VariantEffects(str(ASSETS / n)) for n in ("reward_oracle", "evaluation_oracle")
    )
    wild_type = reward.wild_type
    start = torch.tensor(ids_of([wild_type], PROTEIN))

    def judge(samples: Tokens) -> dict[str, float]:
        none = [""] * len(samples)
        scores, judged = reward(samples, none), second(samples, none)
        variants = [mutations(wild_type, sequence) for sequence in samples.strings()]
        known, single = measured()
        return {
            "best": float(scores.max()),
            "judged": float(judged[scores.argmax()]),
            "median": float(scores.median()),
            "judge": float(judged.median()),
            "bright": float((judged > 3).float().mean()),
            "mutations": sum(map(len, variants)) / len(variants),
            "new": sum(",".join(one) not in known for one in variants) / len(variants),
            "unknown": sum(len(set(one) - single) for one in variants) / len(variants),
            "diversity": diversity(samples),
        }

    def model() -> MaskedDiffusion:
        return MaskedDiffusion(str(ASSETS / "base"), AVGFP_STEPS, temperature=TEMPERATURE)

    rows = methods(AVGFP_ALPHA, AVGFP_STEPS, AVGFP_SAMPLES, start, 14, particles=8, rate=1e-3)
    digits = dict.fromkeys(("best", "judged", "median", "judge", "bright"), 3)
    order = digits | {"mutations": 1, "new": 2, "unknown": 2, "diversity": 3}
    return Experiment(AVGFP_TITLE, model, reward, judge, AVGFP_SAMPLES, rows, order, autocast=True)


@cache
def measured() -> tuple[frozenset[str], frozenset[str]]:
    """The measured variants, and all mutations of theirs."""
    variants = [line.split("\t")[0] for line in MEASURED.read_text().splitlines()[1:]]
    single = frozenset(mutation for variant in variants for mutation in variant.split(","))
    return frozenset(variants) | {""}, single


def mutations(wild_type: str, sequence: str) -> list[str]:
    """As the table of measurements has them: "A108D", counted from 0, in order."""
    pairs = enumerate(zip(wild_type, sequence, strict=True))
    return [f"{old}{place}{new}" for place, (old, new) in pairs if old != new]


def gb1() -> Experiment:
    """A landscape of which all is known."""

    def judge(samples: Tokens) -> dict[str, float]:
        fitness = gb1_base.FITNESS(samples, [""] * len(samples))
        return {
            "best": float(fitness.max()),
            "rank": float(gb1_base.rank(samples)),
            "median": float(fitness.median()),
            "mean": float(fitness.mean()),
            "mutations": float(gb1_base.mutations(samples.ids).float().mean()),
            "distinct": len(set(samples.strings())) / len(samples),
            "diversity": diversity(samples),
        }

    start = gb1_base.screened()
    rows = methods(GB1_ALPHA, gb1_base.STEPS, GB1_SAMPLES, start, 1, particles=32, rate=3e-3)
    order = {"best": 2, "rank": 0, "median": 2, "mean": 2, "mutations": 1}
    return Experiment(
        GB1_TITLE,
        gb1_base.model,
        gb1_base.FITNESS,
        judge,
        GB1_SAMPLES,
        rows | {"exact": Searched(exact)},
        order | {"distinct": 2, "diversity": 3},
    )


def exact(reward: RewardFunction, samples: int, seed: int) -> Tokens:
    """Draws from the law that steering aims for."""
    ids, _ = gb1_base.landscape()
    fitness = torch.cat([reward(Tokens(x, PROTEIN), [""] * len(x)) for x in ids.split(1000)])
    tilted: Tensor = (gb1_base.law().log() + fitness / GB1_ALPHA).softmax(0)
    chosen = tilted.multinomial(samples, replacement=True, generator=stream(seed, "exact"))
    return Tokens(ids[chosen], PROTEIN)


EXPERIMENTS = {"avgfp": avgfp, "gb1": gb1}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--experiment", choices=EXPERIMENTS, required=True)
    chosen, others = parser.parse_known_args()
    main(EXPERIMENTS[chosen.experiment](), __doc__, others)
