"""Minus the Frechet distance of each sample alone to reference statistics: per-song FAD.

Source: Gui et al. (2024), ICASSP, arXiv:2311.01616, section 3.3. The statistics of one sample are
those of its own rows, the windows of a sound or the frames of a video. There are few of them, so
that values are on another scale than those of a set, far larger: compare them with each other only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffreward.embedding import Embedding, EmbeddingFunction
from diffreward.frechet import as_gaussian
from diffreward.moments import Moments
from diffreward.reward import Reward
from diffreward.samples import Samples


class PerSampleFrechet(Reward):
    """Minus the squared Frechet distance of the rows of a sample to a reference. Differentiable.

    At most 0, in squared units of the embedding. A sample with rows that are not finite has no
    score.

    Args:
        embedding: the one that the reference was made with, with two rows of a sample at least.
        reference: moments, or a file of them, or an ``.npz`` file of another tool, see
            `Gaussian.read`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds something else.
    """

    def __init__(
        self, embedding: Embedding | EmbeddingFunction, reference: str | Path | Moments
    ) -> None:
        self.embedding = embedding
        self.reference = as_gaussian(reference)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B samples and their B prompts to scores, (B,) float32.

        Raises:
            ValueError: if the embedding gives one row of a sample.
        """
        rows: Tensor = self.embedding(samples, prompts)
        if rows.shape[1] < 2:
            raise ValueError(
                "the embedding gives one row of a sample, which has no covariance; take shorter "
                "windows or a smaller hop, or score sets with FrechetDistance"
            )
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        scored = rows.isfinite().flatten(1).all(1)
        # NaN with a graph: a part of the samples without a score still is differentiable.
        scores = rows.flatten(1).sum(1) + torch.nan
        with torch.autocast(rows.device.type, enabled=False):
            scores[scored] = -self.reference.distance(rows[scored])
        return scores.float()
