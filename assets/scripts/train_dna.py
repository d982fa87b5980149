"""Train the base model of regulatory DNA: masked diffusion of the 200 bp of lentiMPRA elements.

python assets/scripts/train_dna.py --data ../shared/data/lentimpra_wtc11
"""

import shutil
from pathlib import Path

import torch
from jsonargparse import auto_cli
from markov import markov_nats

from diffreward.alphabets import DNA
from diffreward.sequences.data import SequenceFiles
from diffreward.sequences.denoisers import ConvDenoiser
from diffreward.sequences.pipeline import MaskedDiffusionPipeline
from diffreward.sequences.pretraining import pretrain
from diffreward.sequences.scheduler import MaskedDiffusionScheduler
from diffreward.sequences.settings import Pretraining

FILES = ("elements.fasta", "WTC11_test.tsv", "WTC11_valid.tsv")

ADAPTERS = "15:-15"
"""The library's records begin and end with 15 constant bases."""

ORDERS = range(8)
"""Of the Markov chains that the model is compared with."""


def main(
    data: Path = Path("../shared/data/lentimpra_wtc11"),
    work: Path = Path("outputs/assets/dna"),
    output: Path = Path("assets/dna/base"),
    hidden: int = 64,
    updates: int = 4_000,
    learning_rate: float = 2e-3,
    mixed_precision: str = "bf16",
    seed: int = 0,
) -> None:
    """Train, or go on with training, and write the pipeline to ``output``.

    Args:
        data: Folder of the lentiMPRA library.
        work: Folder of the run: metrics and checkpoints.
        output: Folder of the pipeline, replaced at the end.
        hidden: Channels of the network.
        updates: Optimizer steps of 64 sequences.
        learning_rate: The highest one.
        mixed_precision: "bf16" is three times as fast on CPUs with AMX, "no" safe on all.
        seed: Seed of the split, the weights and the batches.
    """
    sequences = [str(data / name) for name in FILES]
    files = SequenceFiles(sequences, DNA, crop=ADAPTERS, both_strands=True, seed=seed)
    corpus = files.read()
    print(corpus.text())
    for order in ORDERS:
        nats = markov_nats(corpus.training, corpus.held_out, order, len(DNA))
        print(f"Markov chain of order {order}: {nats:.4f} nats per base, held out")
    torch.manual_seed(seed)
    denoiser = ConvDenoiser(len(DNA), hidden=hidden, stacks=1)
    scheduler = MaskedDiffusionScheduler(vocab_size=len(DNA))
    pipeline = MaskedDiffusionPipeline(denoiser, scheduler, DNA, corpus.length)
    settings = Pretraining(
        output=str(work),
        updates=updates,
        learning_rate=learning_rate,
        weight_decay=0.01,
        mixed_precision=mixed_precision,
        seed=seed,
        resume="latest",
    )
    found = pretrain(pipeline, corpus, settings)
    print(f"{found.text()}; trained in {found.seconds:.0f} s")
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(found.folder, output)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
