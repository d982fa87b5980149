"""Train the DNA oracles: a reward, a judge trained on other elements, and a class of active ones.

python assets/scripts/train_dna_oracles.py --data ../shared/data/lentimpra_wtc11
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.nn import functional as F

from diffreward.alphabets import DNA, ids_of
from diffreward.oracles.regressor import SequenceRegressor, reverse_complement
from diffreward.oracles.training import Loss, Plan, pearson, predict, train_regressor

ADAPTER = 15
"""Constant bases at each end of what was synthesised."""


@dataclass(frozen=True)
class Fold:
    """Measured sequences.

    Args:
        rows: (N, 200, 4), one-hot.
        activity: (N, 1), log2 of RNA over DNA.
        elements: N names, the same for both orientations of an element.
    """

    rows: Tensor
    activity: Tensor
    elements: list[bytes]

    @classmethod
    def read(cls, file: Path) -> "Fold":
        """Read the columns seq and mean_value of a table with tabs, and cut the adapters off."""
        lines = [line.split("\t") for line in file.read_text().splitlines()[1:]]
        ids = torch.tensor(ids_of([sequence for sequence, _ in lines], DNA))[:, ADAPTER:-ADAPTER]
        rows = F.one_hot(ids, len(DNA)).float()
        turned = reverse_complement(rows).argmax(2)
        elements = [
            min(bytes(a), bytes(b)) for a, b in zip(ids.tolist(), turned.tolist(), strict=True)
        ]
        return cls(rows, torch.tensor([[float(value)] for _, value in lines]), elements)


def spearman(predictions: Tensor, labels: Tensor) -> Tensor:
    """The rank correlation of each column, (T,)."""
    return pearson(*(x.argsort(0).argsort(0).float() for x in (predictions, labels)))


def auroc(scores: Tensor, active: Tensor) -> float:
    """The probability that an active sequence scores above another one."""
    ranks = scores.argsort().argsort().double() + 1
    positives = int(active.sum())
    above = ranks[active].sum() - positives * (positives + 1) / 2
    return (above / (positives * (len(scores) - positives))).item()


def train(
    fold: Fold, labels: Tensor, task: str, plan: Plan, loss: Loss, mean: float = 0, std: float = 1
) -> SequenceRegressor:
    """A network of one task, in units of `std` around `mean`: log-odds if they are 0 and 1."""
    torch.manual_seed(plan.seed)
    network = SequenceRegressor(
        DNA, fold.rows.shape[1], (task,), means=(mean,), stds=(std,), both_strands=True
    )
    start = time.monotonic()
    fit = train_regressor(network, fold.rows, labels, fold.elements, plan, loss)
    print(
        f"{task}: epoch {fit.best_epoch + 1} of {len(fit.validation)}, validation Pearson "
        f"{max(fit.validation):.3f}, {time.monotonic() - start:.0f} s",
        flush=True,
    )
    return network


def main(
    data: Path = Path("../shared/data/lentimpra_wtc11"),
    output: Path = Path("assets/dna"),
    epochs: int = 25,
    quantile: float = 0.9,
    seed: int = 0,
) -> None:
    """Train the three networks, measure each on the fold that it has not seen, and write them.

    Args:
        data: Folder of WTC11_valid.tsv, from which the reward learns, and WTC11_test.tsv, from
            which the judge and the class learn.
        output: Folder of the three folders.
        epochs: Passes over the training elements, at most.
        quantile: Of the activity in the judge's fold; what is above counts as active.
        seed: Of the weights, the splits and the batches of the reward; the others add 1 and 2.
    """
    of_reward, of_judge = (Fold.read(data / f"WTC11_{name}.tsv") for name in ("valid", "test"))
    for name, fold, other, own in (
        ("reward_oracle", of_reward, of_judge, seed),
        ("evaluation_oracle", of_judge, of_reward, seed + 1),
    ):
        y, plan = fold.activity, Plan(epochs, seed=own)
        mean, std = y.mean().item(), y.std().item()
        network = train(fold, y, "activity", plan, F.mse_loss, mean, std)
        network.save_pretrained(output / name)
        predictions = predict(network, other.rows)
        print(
            f"{name} on the other fold: Pearson {pearson(predictions, other.activity).item():.3f}, "
            f"Spearman {spearman(predictions, other.activity).item():.3f}"
        )
    threshold = of_judge.activity.quantile(quantile)
    labels = (of_judge.activity > threshold).float()
    network = train(
        of_judge, labels, "active", Plan(epochs, seed=seed + 2), F.binary_cross_entropy_with_logits
    )
    network.save_pretrained(output / "active_classifier")
    log_odds, active = predict(network, of_reward.rows)[:, 0], of_reward.activity[:, 0] > threshold
    called = log_odds > 0
    print(
        f"active_classifier (activity above {threshold:.3f}) on the other fold: area under the "
        f"curve {auroc(log_odds, active):.3f}, accuracy {(called == active).float().mean():.3f}; "
        f"{active.float().mean():.3f} are active, {called.float().mean():.3f} are called active"
    )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
