"""Train the base model of a protein: masked diffusion of the variants of avGFP that fluoresce.

python assets/scripts/train_protein.py --data ../shared/data/avgfp
"""

import csv
import math
import shutil
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.nn import functional as F

from diffreward.alphabets import PROTEIN
from diffreward.sequences.data import SequenceFiles
from diffreward.sequences.denoisers import TransformerDenoiser
from diffreward.sequences.pipeline import MaskedDiffusionPipeline
from diffreward.sequences.pretraining import pretrain
from diffreward.sequences.scheduler import MaskedDiffusionScheduler
from diffreward.sequences.settings import Pretraining

FUNCTIONAL = 3.0
"""Log fluorescence above which a variant counts; the wild type has 3.72, and few lie near 3."""

PRIORS = (0.01, 0.1, 1.0)
"""Counts added to each residue of the yardstick; the one that suits the held-out variants best."""


def write_functional(data: Path, file: Path) -> None:
    """Write the sequences of all variants above `FUNCTIONAL` as a table.

    Args:
        data: Folder with ``avgfp.tsv``, whose positions count from 0, and ``wild_type.txt``.
        file: The table.
    """
    wild_type = (data / "wild_type.txt").read_text().strip()
    with (data / "avgfp.tsv").open(newline="") as source:
        rows = [row for row in csv.DictReader(source, delimiter="\t")]
    functional = [row["variant"] for row in rows if float(row["score"]) > FUNCTIONAL]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["sequence"])
        writer.writerows([mutated(wild_type, variant)] for variant in functional)


def mutated(wild_type: str, variant: str) -> str:
    """Return the sequence of a variant such as "A108D,N144D".

    Raises:
        ValueError: If the wild type has another residue there.
    """
    residues = list(wild_type)
    for mutation in variant.split(","):
        old, position, new = mutation[0], int(mutation[1:-1]), mutation[-1]
        if wild_type[position] != old:
            raise ValueError(f"{mutation}: the wild type has {wild_type[position]} there")
        residues[position] = new
    return "".join(residues)


def site_nats(training: Tensor, held_out: Tensor, symbols: int) -> float:
    """Return the held-out nats per symbol of a model whose positions are independent.

    Args:
        training: Ids, of shape (N, L).
        held_out: Ids, of shape (M, L).
        symbols: Size of the alphabet.
    """
    counts = F.one_hot(training, symbols).sum(0).double()
    found = []
    for prior in PRIORS:
        law = (counts + prior) / (counts + prior).sum(1, keepdim=True)
        rows = law.log().expand(len(held_out), -1, -1)
        found.append(-float(rows.gather(2, held_out[..., None]).mean()))
    return min(found)


def main(
    data: Path = Path("../shared/data/avgfp"),
    work: Path = Path("outputs/assets/protein"),
    output: Path = Path("assets/protein/base"),
    hidden: int = 64,
    layers: int = 2,
    updates: int = 1500,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> None:
    """Train, or go on with training, and write the pipeline to ``output``.

    Args:
        data: Folder of the variants.
        work: Folder of the run: sequences, metrics and checkpoints.
        output: Folder of the pipeline, replaced at the end.
        hidden: Size of the vector of a position.
        layers: Blocks of the transformer.
        updates: Optimizer steps of 32 sequences.
        learning_rate: The highest one.
        seed: Seed of the split, the weights and the batches.
    """
    table = work / "functional.csv"
    write_functional(data, table)
    corpus = SequenceFiles(str(table), PROTEIN, held_out=0.02, seed=seed).read()
    print(corpus.text())
    nats = site_nats(corpus.training, corpus.held_out, len(PROTEIN))
    uniform = math.log(len(PROTEIN))
    print(f"independent positions: {nats:.5f} nats per residue, held out; uniform {uniform:.3f}")
    torch.manual_seed(seed)
    denoiser = TransformerDenoiser(
        len(PROTEIN), hidden=hidden, layers=layers, heads=4, max_length=corpus.length
    )
    scheduler = MaskedDiffusionScheduler(vocab_size=len(PROTEIN))
    pipeline = MaskedDiffusionPipeline(denoiser, scheduler, PROTEIN, corpus.length)
    settings = Pretraining(
        output=str(work / "run"),
        updates=updates,
        batch=32,
        learning_rate=learning_rate,
        draws=2,
        evaluate_every=300,
        checkpoint_every=100,
        seed=seed,
        resume="latest",
    )
    found = pretrain(pipeline, corpus, settings)
    print(f"{found.text()}; trained in {found.seconds:.0f} s")
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(found.folder, output)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
