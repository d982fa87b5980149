"""Training a masked diffusion model on sequences, from random weights to a pipeline in a folder.

Source of the loss: `diffreward.sequences.bound`. Every random number is a function of the seed and
of what it is for, so a run that was interrupted ends with the same weights, bit for bit.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from diffreward.averaging import Average
from diffreward.processes import Processes
from diffreward.random import stream
from diffreward.record import Measure
from diffreward.run_folder import RunFolder
from diffreward.sequences.bound import corrupt, estimate, negative_elbo, stratified
from diffreward.sequences.card import Pretrained, write_card
from diffreward.sequences.data import Corpus
from diffreward.sequences.settings import Pretraining
from diffreward.stopping import Stopped, StopSignal

if TYPE_CHECKING:
    from diffreward.sequences.pipeline import MaskedDiffusionPipeline

MEASURE = "nats_per_symbol"


def pretrain(
    pipeline: MaskedDiffusionPipeline,
    corpus: Corpus,
    settings: Pretraining,
    description: str | None = None,
) -> Pretrained:
    """Train the pipeline's denoiser on sequences, in place, and write the pipeline.

    Args:
        pipeline: its alphabet and length are those of the corpus.
        corpus: what is learnt, and what is held out.
        settings: how much and where to.
        description: text that tells this run from others; kept as config.yaml.

    Returns:
        Where the pipeline is, and the bound on the held-out sequences.

    Raises:
        ValueError: if the pipeline is for other sequences, the denoiser cannot read them, or the
            folder holds another run.
        FileExistsError: if the folder holds a run that is not to be resumed.
        FloatingPointError: if a gradient is not finite; the weights stay as they were.
        Stopped: after a SIGTERM or Ctrl-C, with a checkpoint written.
    """
    has = pipeline.config.alphabet, pipeline.config.length
    if has != (corpus.alphabet, corpus.length):
        raise ValueError(
            f"the sequences are {corpus.length} symbols of {corpus.alphabet}, the pipeline is for "
            f"{has[1]} of {has[0]}"
        )
    with torch.no_grad():
        # Networks have demands of their own, and a run that cannot begin should leave no folder.
        pipeline.denoiser.eval()(corpus.held_out[:1].to(pipeline.device), torch.ones(1))
    return _Loop(pipeline, corpus, settings).run(description)


class _Loop:
    """One run, in one of its processes."""

    def __init__(
        self, pipeline: MaskedDiffusionPipeline, corpus: Corpus, settings: Pretraining
    ) -> None:
        self.pipeline, self.corpus, self.settings = pipeline, corpus, settings
        self.training = settings.shared()
        self.processes = Processes(self.training)
        self.processes.require("batch", settings.batch)
        self.accelerator = self.processes.accelerator
        self.folder = RunFolder(Path(settings.output), self.training.checkpoints_kept)
        self.denoiser = pipeline.denoiser.to(self.accelerator.device).requires_grad_()
        self.parameters = dict(self.denoiser.named_parameters())
        self.average = Average(self.parameters)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), weight_decay=settings.weight_decay
        )

    def run(self, description: str | None) -> Pretrained:
        start = time.monotonic()
        model = f"{type(self.denoiser).__name__} {dict(self.denoiser.config)}"
        text = description or f"{model}\n{self.corpus.text()}\n"
        done = None
        if self.accelerator.is_main_process:
            done = self.folder.open(text, self.settings.resume is not None)
        done = self.processes.from_main(done)
        if done is None:
            self._evaluate(0)
            self._save(0)
        else:
            self._load(done)
        with StopSignal() as signal:
            self._updates(done or 0, signal)
        self.average.copy_to_parameters()
        self.denoiser.eval()
        return self._finish(time.monotonic() - start)

    def _updates(self, done: int, signal: StopSignal) -> None:
        last = self.settings.updates
        bar = tqdm(
            range(done + 1, last + 1),
            desc="pretrain",
            initial=done,
            total=last,
            disable=not self.accelerator.is_main_process,
        )
        for update in bar:
            loss = self._update(update)
            if update == last or update % self.settings.evaluate_every == 0:
                bar.set_postfix(loss=f"{loss:.4f}", held_out=self._evaluate(update).text(4))
            stopped = max(self.processes.gathered([signal.received]))
            if stopped or update == last or update % self.settings.checkpoint_every == 0:
                self._save(update)
            if stopped:
                bar.close()
                raise Stopped(stopped)

    def _update(self, update: int) -> float:
        """One step; the bound on its batch in nats per symbol, over all processes."""
        n, seed, start = self.settings.batch, self.settings.seed, time.monotonic()
        clean = self.corpus.training[rows_of_update(len(self.corpus.training), update, n, seed)]
        # Of the whole batch in each process, so that numbers do not depend on how many there are.
        generator = stream(seed, "noise", update)
        corrupted = corrupt(self.pipeline.scheduler, clean, stratified(n, generator), generator)
        mine, device, total = self.processes.share(n), self.accelerator.device, 0.0
        self.denoiser.train()
        for first in range(mine.start, mine.stop, self.settings.rows):
            rows = slice(first, min(first + self.settings.rows, mine.stop))
            with self.accelerator.autocast():
                bounds = negative_elbo(
                    self.denoiser, clean[rows].to(device), corrupted.rows(rows, device)
                )
            loss = bounds.sum() / clean.numel()
            self.accelerator.backward(loss)
            total += loss.item()
        norm = self._gradient_norm()
        self._step(update)
        total = sum(self.processes.gathered([total]))
        seconds = time.monotonic() - start
        self._log(update, "update", loss=total, grad_norm=norm, seconds=seconds)
        return total

    def _gradient_norm(self) -> float:
        """Add the gradient up over processes, clip it, and return its length before clipping."""
        if self.accelerator.num_processes > 1:
            for parameter in self.parameters.values():
                parameter.grad = self.accelerator.reduce(parameter.grad, "sum")
        norm = float(
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm)
        )
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"the gradient is {norm}; the newest checkpoint is whole: start again with a lower "
                "learning rate"
            )
        return norm

    def _step(self, update: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.rate(update)
        self.optimizer.step()
        self.optimizer.zero_grad()
        # A short memory at first: the random first weights would stay in the average otherwise.
        self.average.update(min(self.settings.ema_decay, (1 + update) / (10 + update)))

    def _evaluate(self, update: int) -> Measure:
        """The bound on the held-out sequences, of the averaged weights in full precision."""
        mine, seed = self.processes.share(len(self.corpus.held_out)), self.settings.seed
        self.denoiser.eval()
        with self.average.applied():
            bounds = estimate(
                self.denoiser,
                self.pipeline.scheduler,
                self.corpus.held_out[mine.start : mine.stop],
                self.settings.draws,
                stream(seed, "held out", mine.start),
                self.settings.rows,
            )
        nats = torch.tensor(self.processes.gathered(bounds.tolist())) / self.corpus.length
        error = float(nats.std()) / math.sqrt(len(nats)) if len(nats) > 1 else math.nan
        found = Measure(float(nats.mean()), error, len(nats))
        self._log(update, "evaluation", measures={MEASURE: asdict(found)})
        return found

    def _save(self, update: int) -> None:
        if self.accelerator.is_main_process:
            tensors: dict[str, Tensor] = {f"trained.{n}": p for n, p in self.parameters.items()}
            tensors |= {f"average.{n}": t for n, t in self.average.tensors.items()}
            self.folder.save(update, tensors, {"optimizer": self.optimizer.state_dict()})

    @torch.no_grad()
    def _load(self, update: int) -> None:
        tensors, state = self.folder.load(update)
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"trained.{name}"])
        self.average.load({name: tensors[f"average.{name}"] for name in self.parameters})
        self.optimizer.load_state_dict(state["optimizer"])

    def _finish(self, seconds: float) -> Pretrained:
        self.accelerator.wait_for_everyone()
        first, last = self.folder.measures()
        found = Pretrained(
            self.folder.path / "pipeline",
            Measure.of(first[MEASURE]),
            Measure.of(last[MEASURE]),
            self.corpus,
            seconds,
        )
        if self.accelerator.is_main_process:
            self.pipeline.save_pretrained(found.folder)
            write_card(found, self.pipeline)
        self.accelerator.end_training()
        return found

    def _log(self, update: int, kind: str, **values: object) -> None:
        if self.accelerator.is_main_process:
            self.folder.log({"kind": kind, "update": update, **values})


def rows_of_update(n: int, update: int, batch: int, seed: int) -> Tensor:
    """Which of n sequences an update (1, 2, ...) sees, (batch,): epochs in shuffled order.

    A function of its arguments, so that a resumed run sees what it would have seen.
    """
    first, last = (update - 1) * batch, update * batch
    epochs = range(first // n, (last - 1) // n + 1)
    order = [torch.randperm(n, generator=stream(seed, "order", epoch)) for epoch in epochs]
    return torch.cat(order)[first - epochs.start * n : last - epochs.start * n]
