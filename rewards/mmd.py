"""Minus the maximum mean discrepancy of a set from reference rows: KID, KAD and their like.

Source: Gretton et al. (2012), JMLR 13, 723-773, lemma 6, the unbiased estimate; Binkowski et al.
(2018), ICLR, arXiv:1801.01401 (KID, the polynomial kernel); Chung et al. (2025), ICML,
arXiv:2502.15602 (KAD, the Gaussian kernel). Being unbiased, it means the same for sets of any size:
with fewer samples than features it is the distance to take. KID is reported as the mean over random
subsets, and KAD times 100; here all samples are one set, and nothing is scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffreward.embedding import Embedding, EmbeddingFunction
from diffreward.moments import as_rows
from diffreward.random import stream
from diffreward.set_reward import Credit, SetReward

Kernel = Callable[[Tensor, Tensor, float], Tensor]
"""Maps (N, D), (M, D) and a scale to (N, M)."""

_MOST_ROWS = 4096
"""Of a median of distances, or of a part of a kernel: 16 million numbers at a time."""


def polynomial(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """(x . y / scale + 1)^3, (N, M)."""
    return (x @ y.T / scale + 1) ** 3


def gaussian(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """exp(-|x - y|^2 / (2 scale^2)), (N, M)."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return torch.exp(squares / (-2 * scale**2))


_KERNELS: dict[str, Kernel] = {"polynomial": polynomial, "gaussian": gaussian}


class MMD(SetReward):
    """Minus the squared discrepancy of all samples together from a reference. Differentiable.

    At most 0 up to the noise of the estimate, which may be above. All rows of all samples are
    pooled. A Gaussian kernel does not see samples many bandwidths away from all others.

    Args:
        embedding: the one that the reference was made with.
        reference: rows, (M, D), or a file of them, see `diffreward.moments.load_rows`.
        kernel: ``"polynomial"``, that of KID, or ``"gaussian"``, that of KAD.
        bandwidth: of the Gaussian kernel, in units of the embedding; the median distance of two
            rows of the reference if not given.
        credit: what a sample contributes, see `SetReward`.
        bank: rows of past rounds that join the set, see `SetReward`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds something else, or there is no such kernel.
    """

    def __init__(
        self,
        embedding: Embedding | EmbeddingFunction,
        reference: str | Path | Tensor,
        kernel: Literal["polynomial", "gaussian"] = "polynomial",
        bandwidth: float | None = None,
        credit: Credit = "influence",
        bank: int = 0,
    ) -> None:
        super().__init__(embedding, credit, bank)
        if kernel not in _KERNELS:
            raise ValueError(f"kernels are {list(_KERNELS)}, got {kernel!r}")
        if bandwidth is not None and (kernel != "gaussian" or not bandwidth > 0):
            raise ValueError(
                f"a bandwidth is above 0 and that of the gaussian kernel, got {bandwidth} of the "
                f"{kernel} kernel"
            )
        self.reference = as_rows(reference)
        if len(self.reference) < 2:
            raise ValueError(f"a reference has at least 2 rows, got {len(self.reference)}")
        self.kernel = kernel
        self.bandwidth = bandwidth

    def value(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        within, across = self._kernels(rows)
        if weights is None:
            weights = torch.full_like(rows[:, 0], 1 / len(rows))
        apart = within - torch.diag(within.diagonal())
        own = weights @ apart @ weights / (1 - weights.square().sum())
        return 2 * weights @ across - own - self._within_reference.to(rows)

    @torch.no_grad()
    def values_without_each(self, rows: Tensor, past: Tensor) -> Tensor:
        b, r, _ = rows.shape
        within, across = self._kernels(torch.cat([rows.flatten(0, 1), past]))
        within.fill_diagonal_(0)
        blocks = within[: b * r, : b * r].reshape(b, r, b, r).diagonal(dim1=0, dim2=2).sum((0, 1))
        with_others = within.sum(1)[: b * r].reshape(b, r).sum(1)
        rest = len(within) - r
        own = (within.sum() - 2 * with_others + blocks) / (rest * (rest - 1))
        between = (across.sum() - across[: b * r].reshape(b, r).sum(1)) / rest
        return 2 * between - own - self._within_reference.to(rows)

    def _kernels(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of the rows with each other, (N, N), and the mean of each with the reference, (N,)."""
        features = self.reference.shape[1]
        if rows.shape[1] != features:
            raise ValueError(
                f"the reference has {features} features, the embedding gives {rows.shape[1]}: it "
                "belongs to another embedding"
            )
        reference = self.reference.to(rows)
        if self.kernel == "gaussian":
            # Distances stay, and lose fewer digits.
            reference, rows = reference - reference.mean(0), rows - reference.mean(0)
        kernel = _KERNELS[self.kernel]
        return kernel(rows, rows, self._scale), kernel(rows, reference, self._scale).mean(1)

    @cached_property
    def _scale(self) -> float:
        if self.kernel == "polynomial":
            return float(self.reference.shape[1])
        return self.bandwidth if self.bandwidth is not None else _median_distance(self.reference)

    @cached_property
    def _within_reference(self) -> Tensor:
        """The mean of the kernel over pairs of different rows of the reference, (), float64."""
        rows, kernel = self.reference.double(), _KERNELS[self.kernel]
        rows = rows - rows.mean(0) if self.kernel == "gaussian" else rows
        total = torch.zeros((), dtype=torch.float64)
        part = max(1, _MOST_ROWS**2 // len(rows))
        for first in range(0, len(rows), part):
            block = kernel(rows[first : first + part], rows, self._scale)
            total += (block.sum() - block.diagonal(first).sum()).cpu()
        return total / (len(rows) * (len(rows) - 1))


def _median_distance(rows: Tensor) -> float:
    """Of two different rows; of a part of them if they are many."""
    chosen = torch.randperm(len(rows), generator=stream(0, "median"))[:_MOST_ROWS]
    return float(torch.pdist(rows[chosen.to(rows.device)].double()).median())
