"""The settings of pretraining that belong to neither model nor sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from diffreward.settings import Training


@dataclass(frozen=True)
class Pretraining:
    """How long, how much at a time, and where to.

    The defaults suit networks of some 100,000 weights. Those of 3 million in the papers on DNA
    had a batch of 512, a constant rate of 3e-4 after 2,500 updates, an average with decay 0.9999
    and 131,500 updates (Wang et al. (2024), arXiv:2410.13643, their configuration).

    Args:
        updates: steps of AdamW.
        batch: sequences of each, over all processes.
        rows: most sequences that go through the network at a time; the result stays the same.
        learning_rate: of AdamW.
        schedule: "linear": the rate falls evenly, to 0 after the last update; or "constant".
        warmup: updates over which the rate rises evenly to that of the schedule.
        weight_decay: of AdamW.
        max_grad_norm: gradients longer than this are scaled down to it.
        ema_decay: of the average of the weights that is measured and saved.
        mixed_precision: "auto" is bf16 on a GPU and none on a CPU; some CPUs are faster with bf16.
        draws: times per held-out sequence that the bound is estimated from.
        evaluate_every: updates from one estimate to the next.
        seed: of everything but the first weights.
        output: the run's folder; the pipeline is written to its folder `pipeline`.
        resume: "latest" goes on from the newest checkpoint in the output folder.
        checkpoint_every: updates from one checkpoint to the next.
    """

    output: str
    updates: int = 10_000
    batch: int = 64
    rows: int = 64
    learning_rate: float = 1e-3
    schedule: Literal["constant", "linear"] = "linear"
    warmup: int = 100
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    draws: int = 8
    evaluate_every: int = 1000
    seed: int = 0
    resume: Literal["latest"] | None = None
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if min(self.batch, self.draws, self.evaluate_every) < 1:
            raise ValueError(
                "batch, draws and evaluate_every are at least 1, got "
                f"{self.batch}, {self.draws} and {self.evaluate_every}"
            )
        self.shared()

    def shared(self) -> Training:
        """What all training runs have.

        Raises:
            ValueError: if a number is out of its range.
        """
        fitting: Literal["no", "bf16"] = "bf16" if torch.cuda.is_available() else "no"
        return Training(
            updates=self.updates,
            rows=self.rows,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            ema_decay=self.ema_decay,
            mixed_precision=fitting if self.mixed_precision == "auto" else self.mixed_precision,
            seed=self.seed,
            output=self.output,
            resume=self.resume,
            checkpoint_every=self.checkpoint_every,
        )
