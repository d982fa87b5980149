"""The Vendi score: how many different samples a set has, in effect.

Source: Friedman and Dieng (2023), TMLR, arXiv:2210.02410, definition 3.1; for orders other than 1,
Pasarkar and Dieng (2024), AISTATS, arXiv:2310.12952. The eigenvalues of the similarities of N rows,
each times 1 / N, are a distribution; the score is the exponential of its Renyi entropy.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from diffreward.embedding import Embedding, EmbeddingFunction
from diffreward.set_reward import Credit, SetReward

# Below are zeros with rounding; the entropy of an order below 1 would count each as something.
_SMALLEST_EIGENVALUE = {torch.float32: 1e-6, torch.float64: 1e-10}


class Vendi(SetReward):
    """The number of different samples, from 1 (all equal) to the number of rows. Differentiable.

    Similarity is the cosine of two rows. Where rows are equal the gradient is finite.

    Args:
        embedding: whose directions tell samples apart; a row of zeros is like nothing.
        order: of the entropy, above 0; infinity counts the largest eigenvalue only. 2 needs no
            eigenvalues and is smooth, the one to optimise; 1 is the usual one, to report. The
            smaller the order, the more rare kinds of samples count.
        credit: what a sample contributes, see `SetReward`.
        bank: rows of past rounds that join the set, see `SetReward`: samples should also differ
            from those.

    Raises:
        ValueError: if the order is not positive.
    """

    def __init__(
        self,
        embedding: Embedding | EmbeddingFunction,
        order: float = 2.0,
        credit: Credit = "influence",
        bank: int = 0,
    ) -> None:
        super().__init__(embedding, credit, bank)
        if not order > 0:
            raise ValueError(f"order is above 0, got {order}")
        self.order = float(order)

    def value(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        n, d = rows.shape
        if weights is None:
            weights = torch.full_like(rows[:, 0], 1 / n)
        directions = F.normalize(rows, dim=1) * weights.sqrt()[:, None]
        # Products of the features have the same eigenvalues apart from zeros.
        similarity = directions @ directions.T if n <= d else directions.T @ directions
        if self.order == 2:
            return similarity.square().sum().reciprocal()
        values: Tensor = torch.linalg.eigvalsh(similarity)
        values = values[values > _SMALLEST_EIGENVALUE[values.dtype]]
        if self.order == 1:
            return torch.exp(-(values * values.log()).sum())
        if math.isinf(self.order):
            return values[-1].reciprocal()
        return (values**self.order).sum() ** (1 / (1 - self.order))
