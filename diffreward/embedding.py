"""What sees samples as rows of numbers: the eyes of rewards of sets, and of scores by likeness."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from diffreward.samples import Samples

# Any, for jsonargparse: a callable that returns a class, such as Tensor, is a factory of it there.
EmbeddingFunction = Callable[[Samples, Sequence[str]], Any]
"""Anything that maps B samples and their B prompts to rows, (B, R, D): as `Embedding` does."""


class Embedding(ABC):
    """Sees each sample as R rows of D features: windows of a sound, frames of a video, an image.

    Wherever an embedding is asked for, any callable of this shape will do.
    """

    @abstractmethod
    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B samples and their B prompts to rows, (B, R, D) floating point.

        Differentiable in the samples where they are numbers.
        """
