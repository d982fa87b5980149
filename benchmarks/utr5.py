"""5'UTRs of 50 nt that load many ribosomes: steering and fine-tuning of a uniform prior.

python benchmarks/utr5.py run all --output runs/utr5
python benchmarks/utr5.py table runs/utr5 > benchmarks/utr5.md

Needs the weights of Sample et al. (2019) in ../shared/data/oracles/utr5_optimus: one network is the
reward, the retrained one judges.
"""

from pathlib import Path

import torch
from sequences import Experiment, Steered, Trained, main

from diffreward.algorithms.ddpo import DDPO
from diffreward.algorithms.drakes import DRAKES
from diffreward.alphabets import RNA
from diffreward.penalty import Penalty
from diffreward.pipelines.masked_diffusion import MaskedDiffusion
from diffreward.reward import RewardFunction
from diffreward.rewards.optimus import Optimus5Prime
from diffreward.samples import Tokens
from diffreward.sequence_metrics import diversity
from diffreward.sequences.denoisers.convolution import ConvDenoiser
from diffreward.sequences.pipeline import MaskedDiffusionPipeline
from diffreward.sequences.scheduler import MaskedDiffusionScheduler
from diffreward.steering import SVDD, BestOfN, FKSteering, Guidance
from diffreward.steering.steered import StateValue
from diffreward.steering.value.fitting import fit_soft_value
from diffreward.steering.value.on_diffusion import FittedValue, record_paths
from diffreward.steering.value.sequence_value import SequenceValue

WEIGHTS = Path("../shared/data/oracles/utr5_optimus")
LENGTH, STEPS, ALPHA = 50, 64, 0.05
SCALE = 1 / ALPHA
REWARD, JUDGE = (
    Optimus5Prime(str(WEIGHTS / f"{name}evolution_model_weights.npz"))
    for name in ("", "retrained_")
)
TITLE = f"""# 5'UTRs: ribosome load

Made by `python benchmarks/utr5.py`. The model is uniform over sequences of {LENGTH} nt, as the
library is that the oracle was trained on; {STEPS} steps; alpha = {ALPHA} where it is not said.
Reward: Optimus 5-Prime, in standard deviations of the measurement; judge: the same network trained
again. Means over seeds ± standard error of the median, the best tenth (90 % quantile), the median
of the judge, and diversity (1 - mean share of equal positions of two samples; uniform: 0.75).
Network rows, oracle calls (equal sequences are asked once) and CPU seconds are those of a run of
512 samples, training and value fitting included.
"""


def model() -> MaskedDiffusion:
    """A network that says the same of all symbols, and can learn otherwise.

    The clean sequence of a half-masked one is its mean: of a uniform law no symbol is likeliest.
    """
    torch.manual_seed(0)
    denoiser = ConvDenoiser(4, hidden=32, stacks=1, dilations=(1, 1, 4), kernel=9)
    for parameter in denoiser.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    pipe = MaskedDiffusionPipeline(denoiser, MaskedDiffusionScheduler(), RNA, LENGTH)
    return MaskedDiffusion(pipe, STEPS, relaxation="soft", prediction="mean")


def fitted(model: MaskedDiffusion, reward: RewardFunction, seed: int) -> StateValue:
    """A soft value by regression to finished samples (SVDD-MC, with the right target)."""
    states = record_paths(model, reward, [""], 4096, seed, rows=256)
    network = SequenceValue(4, width=48, depth=3)
    fit = fit_soft_value(states, network, FITTED_SCALE, updates=1500, seed=seed)
    return FittedValue(network, fit, model.num_steps)


FITTED_SCALE = 4.0
"""A regression learns nothing at scales where few samples have all the weight."""


def judge(samples: Tokens) -> dict[str, float]:
    """The columns of the table."""
    rewards = REWARD(samples, [""] * len(samples))
    return {
        "median": float(rewards.median()),
        "best tenth": float(rewards.quantile(0.9)),
        "judge": float(JUDGE(samples, [""] * len(samples)).median()),
        "diversity": diversity(samples),
    }


def drakes(alpha: float) -> Trained:
    """DRAKES through the last half of the steps."""
    method = DRAKES(last_steps=STEPS // 2, penalty=Penalty("kl", alpha, "sum"), checkpointing=False)
    return Trained(method, updates=60, samples=32, learning_rate=2e-3)


POLICY_GRADIENT = DDPO(
    0.2, advantage_clip=10, scale="none", reduction="sum", penalty=Penalty("kl", ALPHA, "sum")
)
"""E[r] - alpha KL, by its gradient: nothing is normalised."""

EXPERIMENT = Experiment(
    TITLE,
    model,
    REWARD,
    judge,
    512,
    {
        "model": None,
        "best of 10": Steered(BestOfN(10)),
        "guidance": Steered(Guidance(scale=SCALE)),
        "SMC, 10 particles": Steered(FKSteering(10, SCALE, interval=1, select="draw")),
        "guided SMC (TDS), 10": Steered(
            FKSteering(10, SCALE, interval=1, guidance=1.0, select="draw")
        ),
        "SVDD, M = 10": Steered(SVDD(10, SCALE)),
        "SVDD, M = 10, alpha 0.01": Steered(SVDD(10, 100.0)),
        "SVDD-R, 10, alpha 0.01": Steered(
            FKSteering(10, 100.0, ess_threshold=1.0, interval=1, select="draw")
        ),
        "SVDD, M = 10, argmax (a search)": Steered(SVDD(10, float("inf"))),
        "SVDD, M = 10, fitted value": Steered(SVDD(10, FITTED_SCALE), fitted),
        "policy gradient (DDPO with KL)": Trained(
            POLICY_GRADIENT, updates=60, samples=64, learning_rate=2e-3
        ),
        "DRAKES, no KL": drakes(0.0),
        "DRAKES": drakes(ALPHA),
    },
    {"median": 3, "best tenth": 3, "judge": 3, "diversity": 3},
)

if __name__ == "__main__":
    main(EXPERIMENT, __doc__)
