"""Train the avGFP oracles: a reward, and a judge that was trained on the other variants.

python assets/scripts/train_protein_oracles.py --data ../shared/data/avgfp
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.nn import functional as F
from train_protein import FUNCTIONAL, mutated

from diffreward.alphabets import PROTEIN, ids_of
from diffreward.oracles.epistasis import GlobalEpistasis, fit_epistasis
from diffreward.oracles.training import pearson, split


@dataclass(frozen=True)
class Variants:
    """Measured variants of one protein.

    Args:
        wild_type: L letters.
        ids: (N, L) int64.
        score: (N, 1), log10 of the fluorescence.
    """

    wild_type: str
    ids: Tensor
    score: Tensor

    @classmethod
    def read(cls, folder: Path) -> "Variants":
        """Read avgfp.tsv, whose mutations are counted from 0, without those that stop early.

        Raises:
            ValueError: if a mutation is not one of the wild type.
        """
        wild_type = (folder / "wild_type.txt").read_text().strip()
        lines = [line.split("\t") for line in (folder / "avgfp.tsv").read_text().splitlines()[1:]]
        whole = [line for line in lines if "*" not in line[0]]
        ids = ids_of([mutated(wild_type, line[0]) for line in whole], PROTEIN)
        return cls(wild_type, torch.tensor(ids), torch.tensor([[float(x[2])] for x in whole]))

    def __getitem__(self, rows: Tensor) -> "Variants":
        return Variants(self.wild_type, self.ids[rows], self.score[rows])


@torch.no_grad()
def predict(network: GlobalEpistasis, ids: Tensor) -> Tensor:
    """The predictions, (N, 1)."""
    blocks = ids.split(512)
    return torch.cat([network(F.one_hot(block, len(PROTEIN)).float()) for block in blocks])


def measures(predictions: Tensor, scores: Tensor) -> str:
    """How predictions agree with measurements, for people."""
    ranks = (x.argsort(0).argsort(0).float() for x in (predictions, scores))
    bright = scores[:, 0] > FUNCTIONAL
    return (
        f"Pearson {pearson(predictions, scores).item():.3f}, Spearman {pearson(*ranks).item():.3f}"
        f", Pearson above {FUNCTIONAL} {pearson(predictions[bright], scores[bright]).item():.3f}"
    )


def main(
    data: Path = Path("../shared/data/avgfp"),
    output: Path = Path("assets/protein"),
    epochs: int = 12,
    seed: int = 0,
) -> None:
    """Train the two networks, measure each on the half that it has not seen, and write them.

    Args:
        data: Folder of avgfp.tsv and wild_type.txt.
        output: Folder of the two folders.
        epochs: Passes over a half.
        seed: Of the halves and of the batches of the reward; the judge's adds 1.
    """
    variants = Variants.read(data)
    # Each variant is one record: no genotype is in both halves, though mutations are.
    halves = [variants[rows] for rows in split(range(len(variants.ids)), 0.5, seed)]
    for name, half, other, own in (
        ("reward_oracle", *halves, seed),
        ("evaluation_oracle", *reversed(halves), seed + 1),
    ):
        start = time.monotonic()
        mean, std = half.score.mean().item(), half.score.std().item()
        network = GlobalEpistasis(half.wild_type, PROTEIN, (mean,), (std,))
        fit_epistasis(network, half.ids, half.score, epochs=epochs, seed=own)
        network.save_pretrained(output / name)
        seconds = time.monotonic() - start
        wild_type = torch.tensor(ids_of([half.wild_type], PROTEIN))
        print(
            f"{name}, {len(half.ids)} variants, {seconds:.0f} s; on the {len(other.ids)} others: "
            f"{measures(predict(network, other.ids), other.score)}; wild type "
            f"{predict(network, wild_type).item():.3f}"
        )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
