"""DNA enhancers by the protocol of DRAKES: one oracle is the reward, another one judges.

python benchmarks/dna.py run all --output runs/dna
python benchmarks/dna.py table runs/dna > benchmarks/dna.md

Everything is in assets/dna but the measured elements and the motifs, ../shared/data.
"""

from functools import cache
from pathlib import Path

import torch
from sequences import Experiment, Steered, Trained, main
from torch import Tensor

from diffreward.algorithms.ddpo import DDPO
from diffreward.algorithms.drakes import DRAKES
from diffreward.algorithms.rwr import RWR
from diffreward.alphabets import DNA, ids_of
from diffreward.penalty import Penalty
from diffreward.pipelines.masked_diffusion import MaskedDiffusion
from diffreward.random import stream
from diffreward.rewards.motifs import Motifs
from diffreward.rewards.mpra_dragonn import MPRADragoNN
from diffreward.rewards.sequence_oracle import SequenceOracle
from diffreward.samples import Tokens
from diffreward.sequence_metrics import diversity, kmer_correlation, motif_correlation
from diffreward.sequences.bound import estimate
from diffreward.steering import SVDD, BestOfN, FKSteering, Guidance

ASSETS, DATA = Path("assets/dna"), Path("../shared/data")
STEPS, ALPHA, SAMPLES = 64, 0.05, 214
REWARD, JUDGE, ACTIVE = (
    SequenceOracle(str(ASSETS / name))
    for name in ("reward_oracle", "evaluation_oracle", "active_classifier")
)
OTHER = MPRADragoNN(str(DATA / "oracles/mpra_dragonn/convmodel_weights.npz"), crop="center")
MOTIFS = Motifs(str(DATA / "rewards/dna/jaspar_2024_consensus.meme"))
TITLE = f"""# DNA enhancers

Made by `python benchmarks/dna.py`. Masked diffusion of the 200-bp elements of a lentiMPRA library
(human stem cells), {STEPS} steps, {SAMPLES} samples a seed, bfloat16. The reward is a network
trained on one fold of the measured elements, the judge another one trained on the other fold, and
"active" a third one that calls an element active if it is among the most active tenth (on the fold
that each has not seen: Pearson .546, .521, AUROC .819). HepG2 is what MPRA-DragoNN says (another
library, cell line and laboratory) of the middle 145 bp.

Medians over samples; 3-mer and motif: correlation of the counts with those of the most active 0.5 %
of the measured elements (Pearson; Spearman of JASPAR motifs); log p: the evidence lower bound under
the model before training, in nats per sequence; diversity: 1 - mean share of equal positions.
Means over seeds ± standard error. alpha = {ALPHA} where nothing else is said.
"""


@cache
def measured() -> tuple[Tokens, Tensor]:
    """All measured elements without their adapters, and their activities."""
    lines = [
        line.split("\t")
        for name in ("valid", "test")
        for line in (DATA / f"lentimpra_wtc11/WTC11_{name}.tsv").read_text().splitlines()[1:]
    ]
    ids = torch.tensor(ids_of([sequence for sequence, _ in lines], DNA))[:, 15:-15]
    return Tokens(ids, DNA), torch.tensor([float(value) for _, value in lines])


@cache
def best() -> Tokens:
    """The most active measured elements."""
    elements, activity = measured()
    return elements[activity.topk(len(activity) // 200).indices]


@cache
def motifs_of_best() -> Tensor:
    """How often each motif occurs in them."""
    return MOTIFS.counts(best())


@cache
def pretrained() -> MaskedDiffusion:
    """The model that judges likelihoods."""
    return model()


def model() -> MaskedDiffusion:
    """The model before training."""
    return MaskedDiffusion(str(ASSETS / "base"), STEPS, relaxation="soft")


def judge(samples: Tokens) -> dict[str, float]:
    """The columns of the table."""
    none = [""] * len(samples)
    pipe = pretrained().pipeline
    bound = estimate(pipe.denoiser, pipe.scheduler, samples.ids, 8, stream(0, "bound"))
    return {
        "reward": float(REWARD(samples, none).median()),
        "judge": float(JUDGE(samples, none).median()),
        "judge, 99th percentile": float(JUDGE(samples, none).quantile(0.99)),
        "active": float((ACTIVE(samples, none) > 0).float().mean()),
        "HepG2": float(OTHER(samples, none).median()),
        "3-mer": kmer_correlation(samples, best()),
        "motif": motif_correlation(MOTIFS.counts(samples), motifs_of_best()),
        "log p": -float(bound.median()),
        "diversity": diversity(samples),
    }


def drakes(alpha: float, updates: int, rate: float) -> Trained:
    """DRAKES through the last third of the steps, as in the paper."""
    method = DRAKES(last_steps=24, penalty=Penalty("kl", alpha, "sum"), checkpointing=False)
    return Trained(method, updates, samples=16, learning_rate=rate)


POLICY_GRADIENT = DDPO(
    0.2, advantage_clip=10, scale="none", reduction="sum", penalty=Penalty("kl", ALPHA, "sum")
)
"""E[r] - alpha KL, by its gradient: nothing is normalised."""

EXPERIMENT = Experiment(
    TITLE,
    model,
    REWARD,
    judge,
    SAMPLES,
    {
        "model": None,
        "best of 8": Steered(BestOfN(8)),
        "guidance": Steered(Guidance(scale=1 / ALPHA)),
        "SMC, 8 particles": Steered(FKSteering(8, 1 / ALPHA, interval=4, select="draw")),
        "guided SMC (TDS), 4": Steered(
            FKSteering(4, 1 / ALPHA, interval=1, guidance=1.0, select="draw")
        ),
        "FK steering (max), 8": Steered(
            FKSteering(8, 1 / ALPHA, potential="max", interval=4, select="best")
        ),
        "SVDD, M = 8": Steered(SVDD(8, 1 / ALPHA)),
        "SVDD, M = 8, argmax (a search)": Steered(SVDD(8, float("inf"))),
        "policy gradient (DDPO with KL)": Trained(
            POLICY_GRADIENT, updates=40, samples=32, learning_rate=1e-3
        ),
        "weighted denoising (RWR)": Trained(
            RWR(beta=ALPHA, draws=4), updates=60, samples=32, learning_rate=5e-4
        ),
        "DRAKES, no KL": drakes(0.0, 40, 3e-4),
        "DRAKES": drakes(ALPHA, 80, 1e-3),
        "DRAKES, alpha 0.1": drakes(0.1, 80, 1e-3),
        "DRAKES, alpha 0.115": drakes(0.115, 80, 1e-3),
        "DRAKES, alpha 0.13": drakes(0.13, 80, 1e-3),
        "DRAKES, alpha 0.2": drakes(0.2, 80, 1e-3),
    },
    {
        "reward": 2,
        "judge": 2,
        "judge, 99th percentile": 2,
        "active": 3,
        "HepG2": 2,
        "3-mer": 3,
        "motif": 3,
        "log p": 1,
        "diversity": 3,
    },
    autocast=True,
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__)
