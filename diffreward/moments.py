"""What is kept of a reference set: its mean and scatter, or its rows, in files to share.

Source: for merging, Chan, Golub and LeVeque (1982), COMPSTAT, equations 2.1; in float64, because
the difference of large sums of squares is lost in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from diffreward.gathering import gathered
from diffreward.samples import Samples


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and scatter of rows of D features, in float64 on the CPU.

    Moments of parts merge to the moments of the whole, in any order, up to rounding.

    Args:
        count: of rows.
        mean: (D,).
        scatter: sum of the outer products of the rows less their mean, (D, D).

    Raises:
        ValueError: if the shapes do not fit.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    def __post_init__(self) -> None:
        d = self.mean.shape[-1] if self.mean.ndim == 1 else -1
        if self.scatter.shape != (d, d):
            raise ValueError(
                "moments are a mean (D,) and a scatter (D, D), got "
                f"{tuple(self.mean.shape)} and {tuple(self.scatter.shape)}"
            )

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """The moments of rows, (..., D); rows that are not finite do not count.

        Raises:
            ValueError: if there are no finite rows.
        """
        rows = rows.detach().cpu().double().flatten(0, -2)
        rows = rows[rows.isfinite().all(-1)]
        if not len(rows):
            raise ValueError("there are no finite rows to take moments of")
        mean = rows.mean(0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    @classmethod
    def of_samples(
        cls,
        embedding: Callable[[Samples, Sequence[str]], Tensor],
        batches: Iterable[tuple[Samples, Sequence[str]]],
    ) -> Self:
        """The moments of the embedding of samples, batch by batch.

        Args:
            embedding: maps samples and their prompts to rows, (B, R, D).
            batches: samples and their prompts.

        Raises:
            ValueError: if there are no batches.
        """
        total: Self | None = None
        with torch.no_grad():
            for samples, prompts in batches:
                part = cls.of(embedding(samples, prompts))
                total = part if total is None else total.merge(part)
        if total is None:
            raise ValueError("there are no samples to take moments of")
        return total

    def merge(self, other: Self) -> Self:
        """The moments of both sets of rows together."""
        count = self.count + other.count
        step = other.mean - self.mean
        between = torch.outer(step, step) * (self.count * other.count / count)
        mean = self.mean + step * (other.count / count)
        return type(self)(count, mean, self.scatter + other.scatter + between)

    def of_all_processes(self) -> Self:
        """The moments of the rows of all processes; equal bit by bit in all of them."""
        parts, _ = gathered(self)
        return reduce(lambda total, part: total.merge(part), parts)

    @property
    def covariance(self) -> Tensor:
        """(D, D), divided by count - 1.

        Raises:
            ValueError: of fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"a covariance takes at least 2 rows, got {self.count}")
        return self.scatter / (self.count - 1)

    def save(self, file: str | Path, about: Mapping[str, str] | None = None) -> None:
        """Write a file of safetensors.

        Args:
            file: its folder is made if need be.
            about: what a reader should know: the embedding, and whose samples.
        """
        tensors = {"mean": self.mean, "scatter": self.scatter, "count": torch.tensor(self.count)}
        _save(tensors, file, about)

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """The moments in a file that `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds something else.
        """
        tensors = _load(file)
        if not {"mean", "scatter", "count"} <= tensors.keys():
            raise ValueError(f"{file} holds {sorted(tensors)}; moments are mean, scatter and count")
        return cls(int(tensors["count"]), tensors["mean"].double(), tensors["scatter"].double())


def save_rows(rows: Tensor, file: str | Path, about: Mapping[str, str] | None = None) -> None:
    """Write the rows of a reference set, (N, D), as safetensors, with what is to be known of it."""
    _save({"rows": rows.detach().cpu().contiguous()}, file, about)


def load_rows(file: str | Path) -> Tensor:
    """The rows of a reference set, (N, D): of `save_rows`, or an ``.npy`` array.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    if Path(file).suffix == ".npy":
        import numpy as np

        rows = torch.from_numpy(np.load(existing(file), allow_pickle=False))
    else:
        tensors = _load(file)
        if "rows" not in tensors:
            raise ValueError(f"{file} holds {sorted(tensors)}; a reference set is rows")
        rows = tensors["rows"]
    if rows.ndim != 2 or not rows.is_floating_point():
        raise ValueError(f"rows are (N, D) numbers, got {tuple(rows.shape)} {rows.dtype} in {file}")
    return rows


def as_rows(reference: str | Path | Tensor) -> Tensor:
    """The rows of a reference set, (N, D), given or in a file, see `load_rows`."""
    return reference if isinstance(reference, Tensor) else load_rows(reference)


def about(file: str | Path) -> dict[str, str]:
    """What a file of safetensors says of itself."""
    from safetensors import safe_open

    with safe_open(existing(file), "pt") as opened:
        return dict(opened.metadata() or {})


def existing(file: str | Path) -> Path:
    """The path of a file.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no reference at {path.absolute()}")
    return path


def _save(tensors: dict[str, Tensor], file: str | Path, about: Mapping[str, str] | None) -> None:
    from safetensors.torch import save_file

    path = Path(file).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=dict(about or {}))


def _load(file: str | Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(existing(file))
