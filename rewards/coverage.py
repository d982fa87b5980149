"""Fidelity and coverage of a set by neighbourhoods of reference rows, and of its own.

Source: Kynkaanniemi et al. (2019), NeurIPS, arXiv:1904.06991, equation 2 (precision, recall); Naeem
et al. (2020), ICML, arXiv:2002.09797, equations 3 and 4 (density, coverage). The neighbourhood of a
row is the open ball up to its k-th nearest neighbour in its own set. None is differentiable. As in
Naeem et al. a row on the edge is outside.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from diffreward.embedding import Embedding, EmbeddingFunction
from diffreward.moments import as_rows
from diffreward.set_reward import Credit, SetReward

_PART = 1024
"""Rows whose distances to all others are taken at a time."""


class Neighbourhoods:
    """The neighbourhoods of the rows of a reference set.

    Args:
        reference: rows, (M, D), or a file of them, see `diffreward.moments.load_rows`.
        neighbours: k.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else, or there are not more than k rows.
    """

    def __init__(self, reference: str | Path | Tensor, neighbours: int) -> None:
        self.rows = as_rows(reference)
        self.neighbours = neighbours
        if not 1 <= neighbours < len(self.rows):
            raise ValueError(
                f"got {neighbours} neighbours; expected at least 1, and fewer than the "
                f"{len(self.rows)} rows of the reference"
            )

    @cached_property
    def radii(self) -> Tensor:
        """(M,)."""
        return _radii(self.rows, self.neighbours)

    def distances(self, rows: Tensor) -> Tensor:
        """From each row of the reference to each of the rows (N, D), (M, N).

        Raises:
            ValueError: if the rows have another number of features.
        """
        features = self.rows.shape[1]
        if rows.shape[1] != features:
            raise ValueError(
                f"the reference has {features} features, the embedding gives {rows.shape[1]}: it "
                "belongs to another embedding"
            )
        return torch.cdist(self.rows.to(rows), rows.detach())

    def holding(self, rows: Tensor) -> Tensor:
        """Which neighbourhood holds which of the rows (N, D), (M, N), boolean."""
        return self.distances(rows) < self.radii.to(rows)[:, None]


class Precision(SetReward):
    """The share of rows that are in the neighbourhood of some reference row, 0 to 1.

    Args:
        embedding: the one that the reference was made with.
        reference: rows or a file of them, see `Neighbourhoods`.
        neighbours: k; 3 in the paper.
        bank: rows of past rounds that join the set, see `SetReward`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else, or there are not more than k rows.
    """

    fewest_rows = 1

    def __init__(
        self,
        embedding: Embedding | EmbeddingFunction,
        reference: str | Path | Tensor,
        neighbours: int = 3,
        bank: int = 0,
    ) -> None:
        super().__init__(embedding, bank=bank)
        self.reference = Neighbourhoods(reference, neighbours)

    def value(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        hits = self.reference.holding(rows).any(0).to(rows.dtype)
        return hits.mean() if weights is None else weights @ hits


class Density(SetReward):
    """How many neighbourhoods of reference rows a row is in, over k: 1 for the reference's own law.

    Unlike precision it is not fooled by outliers of the reference; it may be far above 1.

    Args:
        embedding: the one that the reference was made with.
        reference: rows or a file of them, see `Neighbourhoods`.
        neighbours: k; 5 in the paper.
        bank: rows of past rounds that join the set, see `SetReward`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else, or there are not more than k rows.
    """

    fewest_rows = 1

    def __init__(
        self,
        embedding: Embedding | EmbeddingFunction,
        reference: str | Path | Tensor,
        neighbours: int = 5,
        bank: int = 0,
    ) -> None:
        super().__init__(embedding, bank=bank)
        self.reference = Neighbourhoods(reference, neighbours)

    def value(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        counts = self.reference.holding(rows).sum(0).to(rows.dtype) / self.reference.neighbours
        return counts.mean() if weights is None else weights @ counts


class Coverage(SetReward):
    """The share of reference rows whose neighbourhood holds a row of the set, 0 to 1.

    Its ``"influence"`` shares each covered row of the reference equally among the samples that
    cover it, the Shapley value of coverage; ``"leave_one_out"`` gives a sample those that no other
    covers, which is nothing for most of a large set.

    Args:
        embedding: the one that the reference was made with.
        reference: rows or a file of them, see `Neighbourhoods`.
        neighbours: k; 5 in the paper.
        credit: what a sample contributes.
        bank: rows of past rounds that join the set, see `SetReward`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else, or there are not more than k rows.
    """

    fewest_rows = 1

    def __init__(
        self,
        embedding: Embedding | EmbeddingFunction,
        reference: str | Path | Tensor,
        neighbours: int = 5,
        credit: Credit = "influence",
        bank: int = 0,
    ) -> None:
        super().__init__(embedding, credit, bank)
        self.reference = Neighbourhoods(reference, neighbours)

    def value(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.reference.holding(rows).any(1).to(rows.dtype).mean()

    def influences(self, rows: Tensor, past: Tensor) -> Tensor:
        return _shares(*self._covering(rows, past)).to(rows.dtype)

    def values_without_each(self, rows: Tensor, past: Tensor) -> Tensor:
        own, others = self._covering(rows, past)
        counts = own.sum(1) + others.sum(1)
        return ((counts[:, None] - own.int()) > 0).to(rows.dtype).mean(0)

    def _covering(self, rows: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Which neighbourhood holds a row of which sample, (M, B), and which row of the past."""
        b, r, _ = rows.shape
        held = self.reference.holding(rows.flatten(0, 1))
        return held.reshape(-1, b, r).any(2), self.reference.holding(past)


class Recall(SetReward):
    """The share of reference rows in the neighbourhood of some row of the set, 0 to 1.

    The neighbourhoods are those of the set, so that one outlier in it covers much. The
    ``"influence"`` shares each covered row of the reference equally among the samples that cover
    it, as if the neighbourhoods were given; ``"leave_one_out"`` is exact, and slow.

    Args:
        embedding: the one that the reference was made with.
        reference: rows, (M, D), or a file of them, see `diffreward.moments.load_rows`.
        neighbours: k; 3 in the paper. A set has more rows than that.
        credit: what a sample contributes.
        bank: rows of past rounds that join the set, see `SetReward`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else, or k is not positive.
    """

    def __init__(
        self,
        embedding: Embedding | EmbeddingFunction,
        reference: str | Path | Tensor,
        neighbours: int = 3,
        credit: Credit = "influence",
        bank: int = 0,
    ) -> None:
        super().__init__(embedding, credit, bank)
        self.reference = Neighbourhoods(reference, neighbours)
        self.fewest_rows = neighbours + 2

    def value(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        return self._holding(rows).any(1).to(rows.dtype).mean()

    def influences(self, rows: Tensor, past: Tensor) -> Tensor:
        b, r, _ = rows.shape
        held = self._holding(torch.cat([rows.flatten(0, 1), past]))
        own = held[:, : b * r].reshape(-1, b, r).any(2)
        return _shares(own, held[:, b * r :]).to(rows.dtype)

    def _holding(self, rows: Tensor) -> Tensor:
        """Which row of the reference is in the neighbourhood of which row of the set, (M, N)."""
        return self.reference.distances(rows) < _radii(rows.detach(), self.reference.neighbours)


def _shares(own: Tensor, others: Tensor) -> Tensor:
    """What B samples cover, each row of the reference divided by how many do, times B, (B,).

    Args:
        own: which sample covers which row of the reference, (M, B).
        others: which rows of the past do, (M, P); they take their share.
    """
    counts = own.sum(1) + others.sum(1)
    return own.shape[1] * (own / counts.clamp(min=1)[:, None]).mean(0)


def _radii(rows: Tensor, neighbours: int) -> Tensor:
    """The distance of each row to its k-th nearest other one, (N,)."""
    # The nearest of all is the row itself.
    nearest = [
        torch.cdist(part, rows).topk(neighbours + 1, largest=False).values
        for part in rows.split(_PART)
    ]
    return torch.cat([distances[:, -1] for distances in nearest])
