"""Temporal consistency: how alike neighbouring frames of a video are.

Source: the frame consistency of Esser et al. (2023), ICCV, arXiv:2302.03011, section 4: the mean
cosine between the CLIP embeddings of neighbouring frames. There it is measured; as a reward it is
best at a video that stands still, so that it belongs beside one that asks for motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from diffreward.embedding import Embedding, EmbeddingFunction
from diffreward.embeddings.frames import frames_and_prompts
from diffreward.reward import Reward
from diffreward.samples import Samples


@dataclass(frozen=True)
class TemporalConsistency(Reward):
    """The mean cosine of neighbouring frames' embeddings, in [-1, 1]; 1 for a still video.

    With CLIP about 0.9 to 1. Differentiable if the embedding is.

    Args:
        embedding: of images; `diffreward.embeddings.clip_image.ClipImageEmbedding` for the paper's.
            If it gives several rows per image, rows are compared with those at the same place.
    """

    embedding: Embedding | EmbeddingFunction

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B videos and their B prompts to scores, (B,) float32.

        Raises:
            ValueError: if the videos have a single frame.
        """
        rows = self.embedding(*frames_and_prompts(samples, prompts))
        rows = rows.float().unflatten(0, (len(prompts), -1))
        if rows.shape[1] < 2:
            raise ValueError("a video of a single frame has no neighbouring frames")
        cosines: Tensor = F.cosine_similarity(rows[:, 1:], rows[:, :-1], dim=-1)
        return cosines.mean((1, 2))
