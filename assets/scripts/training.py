"""What the training scripts share: a resumable run, its learning rate and its averaged weights."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


class Run:
    """A resumable training run of one module with AdamW.

    The learning rate warms up linearly over the first 3% of the steps and falls to zero on a
    cosine. An exponential moving average of the weights is what `averaged` returns.

    Args:
        module: The module to train; several modules go into an ``nn.ModuleDict``.
        checkpoint: File that keeps the state; training continues from it if it exists.
        steps: Number of optimizer steps in all.
        rate: Highest learning rate.
        seed: Seed of the generator handed to the loss.
        decay: Largest decay of the moving average per step.
    """

    def __init__(
        self,
        module: nn.Module,
        checkpoint: Path,
        steps: int,
        rate: float,
        seed: int,
        decay: float = 0.999,
    ) -> None:
        self._module, self._checkpoint, self._steps = module, checkpoint, steps
        self._decay = decay
        self._optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.01)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._scale)
        self._average = {name: value.clone() for name, value in module.state_dict().items()}
        self._generator = torch.Generator().manual_seed(seed)
        self._step, self._seconds = 0, 0.0
        if checkpoint.exists():
            self._load()

    def _scale(self, step: int) -> float:
        warm = max(1, self._steps * 3 // 100)
        done = min(1.0, step / self._steps)
        return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * done))

    def train(
        self,
        loss_of: Callable[[torch.Generator], torch.Tensor],
        export: Callable[[], None],
        every: int = 1000,
        stop: int | None = None,
    ) -> float:
        """Train to the last step.

        Args:
            loss_of: Draws a batch with the given generator and returns its loss.
            export: Called, with the averaged weights in the module, at every ``every`` steps
                and at the end, to write a usable model.
            every: Number of steps between two checkpoints.
            stop: Step to end at instead of the last one of the schedule.

        Returns:
            The wall time in seconds, that of an interrupted run included.
        """
        start = time.monotonic() - self._seconds
        last = self._steps if stop is None else min(stop, self._steps)
        while self._step < last:
            loss = loss_of(self._generator)
            self._optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self._module.parameters(), 1.0)
            self._optimizer.step()
            self._schedule.step()
            self._step += 1
            self._seconds = time.monotonic() - start
            self._update_average()
            if self._step % 100 == 0:
                print(f"{self._step} {self._seconds:.0f} s loss {loss.item():.4f}", flush=True)
            if self._step % every == 0 and self._step < last:
                self._save()
                self._export_average(export)
        self._save()
        self._export_average(export)
        return self._seconds

    @torch.no_grad()
    def _update_average(self) -> None:
        # A short memory at first: the random first weights would stay in the average otherwise.
        decay = min(self._decay, (1 + self._step) / (10 + self._step))
        for name, value in self._module.state_dict().items():
            if value.is_floating_point():
                self._average[name].lerp_(value, 1 - decay)
            else:
                self._average[name].copy_(value)

    def _export_average(self, export: Callable[[], None]) -> None:
        trained = {name: value.clone() for name, value in self._module.state_dict().items()}
        self._module.load_state_dict(self._average)
        export()
        self._module.load_state_dict(trained)

    def _save(self) -> None:
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "module": self._module.state_dict(),
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "generator": self._generator.get_state(),
            "step": self._step,
            "seconds": self._seconds,
        }
        aside = self._checkpoint.with_suffix(".aside")
        torch.save(state, aside)
        aside.replace(self._checkpoint)

    def _load(self) -> None:
        state = torch.load(self._checkpoint, weights_only=True)
        self._module.load_state_dict(state["module"])
        self._average = state["average"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["generator"])
        self._step, self._seconds = state["step"], state["seconds"]
