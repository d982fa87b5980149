"""Minus the Frechet distance of a set to reference statistics: FID, FAD and their like.

Source: Heusel et al. (2017), NeurIPS, arXiv:1706.08500 (FID); Kilgour et al. (2019), Interspeech,
arXiv:1812.08466 (FAD). Which of them it is depends on the embedding. For the correction, Quenouille
(1956), Biometrika 43, 353-360. The distance of few samples is mostly bias, of the order 1 / n: it
compares sets of one size only.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from diffreward.embedding import Embedding, EmbeddingFunction
from diffreward.frechet import as_gaussian
from diffreward.moments import Moments
from diffreward.set_reward import Credit, SetReward


class FrechetDistance(SetReward):
    """Minus the squared Frechet distance of all samples together to a reference. Differentiable.

    At most 0, in squared units of the embedding. All rows of all samples are pooled.

    Args:
        embedding: the one that the reference was made with.
        reference: moments, or a file of them, or an ``.npz`` file of another tool, see
            `Gaussian.read`.
        credit: what a sample contributes, see `SetReward`.
        bank: rows of past rounds that join the set, see `SetReward`; four times the features make
            the distance of a small batch mean something.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds something else.
    """

    def __init__(
        self,
        embedding: Embedding | EmbeddingFunction,
        reference: str | Path | Moments,
        credit: Credit = "influence",
        bank: int = 0,
    ) -> None:
        super().__init__(embedding, credit, bank)
        self.reference = as_gaussian(reference)

    def value(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        return -self.reference.distance(rows, weights)

    def values_without_each(self, rows: Tensor, past: Tensor) -> Tensor:
        return -self.reference.distances_without_each(rows, past)

    @torch.no_grad()
    def corrected(self, rows: Tensor) -> Tensor:
        """The value of a set without its bias of order 1 / n, (), by the jackknife.

        For reports; it may be above 0. With fewer than four rows per feature the correction itself
        is wrong: measured for standard normal features, it errs by a tenth with two.

        Args:
            rows: (B, R, D), those of the whole set.

        Raises:
            ValueError: if there are fewer rows than four times the features.
        """
        b, r, d = rows.shape
        if b * r < 4 * d:
            raise ValueError(
                f"the correction takes at least 4 rows per feature, {4 * d}, got {b * r}"
            )
        without = self.values_without_each(rows, rows.new_empty(0, d))
        return b * self.value(rows.flatten(0, 1)) - (b - 1) * without.mean()
