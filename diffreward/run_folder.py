"""The folder of a run: what is written while it trains, and how it goes on after a stop.

Whatever a crash leaves behind can be resumed: a checkpoint is a folder that is written aside and
renamed when it is complete, and lines of the metrics that are younger are dropped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffreward.record import stored


class RunFolder:
    """Metrics, samples and checkpoints of one run.

    Args:
        path: of the folder.
        checkpoints_kept: how many of the newest checkpoints stay.
    """

    def __init__(self, path: Path, checkpoints_kept: int) -> None:
        self.path, self._kept = path, checkpoints_kept

    def open(self, description: str, resume: bool) -> int | None:
        """Create the folder, or check that it belongs to this run.

        Args:
            description: what makes the run what it is; kept in ``config.yaml``.
            resume: whether to go on with the run that is there.

        Returns:
            The update of the newest checkpoint, to go on after; None to start from the beginning.

        Raises:
            FileExistsError: if there is a run already, and it is not to be resumed.
            ValueError: if the run that is there was another one.
        """
        config = self.path / "config.yaml"
        if config.is_file():
            if not resume:
                raise FileExistsError(
                    f"{self.path} holds a run already; resume it with --resume latest, or choose "
                    "another --output"
                )
            _require_same(config.read_text(encoding="utf-8"), description, self.path)
        elif self.path.is_dir() and {p.name for p in self.path.iterdir()} - {_aside(config).name}:
            raise FileExistsError(f"{self.path} holds something that is no run; choose another")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            _write_atomically(config, description)
        checkpoints = self._checkpoints()
        update = int(checkpoints[-1].name) if checkpoints else None
        self._keep_metrics_up_to(-1 if update is None else update)
        return update

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``; null stands for NaN, which JSON does not have."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(stored(line), allow_nan=False) + "\n")

    def measures(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The measures of the first and of the last evaluation."""
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found = [m["measures"] for m in map(json.loads, lines) if m["kind"] == "evaluation"]
        return found[0], found[-1]

    def samples(self, update: int) -> Path:
        """Where the samples of the evaluation after an update go."""
        return self.path / "samples" / f"{update:06d}"

    def save(self, update: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint: named tensors, and whatever else torch can save."""
        target = self.path / "checkpoints" / f"{update:06d}"
        aside = _aside(target)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        on_cpu = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        save_file(on_cpu, aside / "weights.safetensors")
        torch.save(dict(state), aside / "state.pt")
        if target.is_dir():
            # The same update, computed again after a resume: both are complete and equal.
            shutil.rmtree(aside)
            return
        os.rename(aside, target)
        for old in self._checkpoints()[: -self._kept]:
            shutil.rmtree(old)

    def load(self, update: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the checkpoint of an update: its tensors and its state, on the CPU."""
        folder = self.path / "checkpoints" / f"{update:06d}"
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        return load_file(folder / "weights.safetensors"), state

    def _checkpoints(self) -> list[Path]:
        folder = self.path / "checkpoints"
        return sorted(p for p in folder.glob("[0-9]*") if p.is_dir())

    def _keep_metrics_up_to(self, update: int) -> None:
        file = self.path / "metrics.jsonl"
        if file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _update_of(line) <= update]
            _write_atomically(file, "".join(line + "\n" for line in kept))


def _update_of(line: str) -> float:
    """The update of a line of metrics; infinity for a line that a crash cut off."""
    try:
        return float(json.loads(line)["update"])
    except json.JSONDecodeError:
        return float("inf")


def _write_atomically(file: Path, text: str) -> None:
    _aside(file).write_text(text, encoding="utf-8")
    os.replace(_aside(file), file)


def _aside(path: Path) -> Path:
    """Where a file or folder is written before it takes its name."""
    return path.with_name(f".{path.name}.writing")


def _require_same(there: str, ours: str, path: Path) -> None:
    old, new = there.splitlines(), ours.splitlines()
    if old != new:
        removed = [line for line in old if line not in new]
        added = [line for line in new if line not in old]
        raise ValueError(
            f"{path} holds another run. There: {removed[:5]}; here: {added[:5]}. Resume with the "
            "configuration it was started with, or choose another --output"
        )
