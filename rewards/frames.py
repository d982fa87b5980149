"""An image reward for videos: the scores of the frames, brought together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from diffreward.embeddings.frames import frames_and_prompts
from diffreward.reward import Reward, RewardFunction, score
from diffreward.samples import Samples


@dataclass(frozen=True)
class PerFrame(Reward):
    """The mean, the least or a soft least of an image reward over the frames of a video.

    All frames of all videos are scored in one call, each with the prompt of its video. The result
    is differentiable if the reward is, and NaN if a frame has no score. Order and speed of the
    frames do not count.

    Args:
        reward: of images.
        pooling: ``mean``; ``min``, the worst frame; or ``softmin``, -t log mean exp(-r / t), which
            is near the worst frame for a small temperature t, and near the mean for a large one.
        every: score the frames 0, every, 2 every and so on.
        temperature: t, in units of the reward.

    Raises:
        ValueError: if there is no such pooling, or a number is out of its range.
    """

    reward: Reward | RewardFunction
    pooling: str = "mean"
    every: int = 1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.pooling not in _POOLINGS:
            raise ValueError(f"pooling is one of {list(_POOLINGS)}, got {self.pooling!r}")
        if self.every < 1 or not self.temperature > 0:
            raise ValueError(
                f"got every {self.every} and temperature {self.temperature}; expected at least 1, "
                "and above 0"
            )

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        frames, repeated = frames_and_prompts(samples, prompts, self.every)
        scores = score(self.reward, frames, repeated).reshape(len(prompts), -1)
        return _POOLINGS[self.pooling](scores, self.temperature)


def _mean(scores: Tensor, temperature: float) -> Tensor:
    return scores.mean(1)


def _least(scores: Tensor, temperature: float) -> Tensor:
    return scores.amin(1)


def _soft_least(scores: Tensor, temperature: float) -> Tensor:
    log_sum = (-scores / temperature).logsumexp(1)
    return -temperature * (log_sum - math.log(scores.shape[1]))


_POOLINGS = {"mean": _mean, "min": _least, "softmin": _soft_least}
