"""Videos as the images that they consist of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from diffreward.embedding import Embedding, EmbeddingFunction
from diffreward.samples import Images, Samples, videos


@dataclass(frozen=True)
class EachFrame(Embedding):
    """The rows of a video: those of its frames, in their order.

    Args:
        embedding: of images.
        every: take the frames 0, every, 2 every and so on.

    Raises:
        ValueError: if every is below 1.
    """

    embedding: Embedding | EmbeddingFunction
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is at least 1, got {self.every}")

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B videos of F frames to (B, F R, D), if the embedding gives R rows per image."""
        rows = self.embedding(*frames_and_prompts(samples, prompts, self.every))
        of_videos: Tensor = rows.unflatten(0, (len(prompts), -1))
        return of_videos.flatten(1, 2)


def frames_and_prompts(
    samples: Samples, prompts: Sequence[str], every: int = 1
) -> tuple[Images, list[str]]:
    """The frames of B videos as images, all of the first video first, with a prompt each.

    Args:
        samples: `Videos`.
        prompts: of the videos.
        every: take the frames 0, every, 2 every and so on.

    Raises:
        TypeError: if the samples are no videos.
    """
    frames = videos(samples)[:, ::every]
    repeated = [prompt for prompt in prompts for _ in range(frames.shape[1])]
    return Images(frames.flatten(0, 1)), repeated
