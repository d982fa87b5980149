"""Motion: how fast the pixels of a video change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from diffreward.reward import Reward
from diffreward.samples import Samples, Videos, videos


@dataclass(frozen=True)
class Motion(Reward):
    """The mean squared rate of change of the pixels, or how near it is to a target.

    The rate is the difference of neighbouring frames, in units of the range of the pixels, times
    the frames per second: a fade from black to white within a second has the motion 1, whatever
    its frame rate, and a still video 0. It is measured without optical flow, so that flicker and
    noise count as motion too. Differentiable in the frames.

    Args:
        target: motion to aim at, in 1/s². The score is minus the distance from it, at most 0.
            Without one it is the motion itself, at least 0, which rises without end.

    Raises:
        ValueError: if the target is negative.
    """

    target: float | None = None

    def __post_init__(self) -> None:
        if self.target is not None and self.target < 0:
            raise ValueError(f"the target is at least 0, got {self.target}")

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B videos to scores, (B,) float32.

        Raises:
            ValueError: if the videos have a single frame.
        """
        frames = videos(samples).float()
        if frames.shape[1] < 2:
            raise ValueError("a video of a single frame has no motion")
        rates = frames.diff(dim=1) * cast(Videos, samples).fps
        motion = rates.square().mean((1, 2, 3, 4))
        return motion if self.target is None else -(motion - self.target).abs()
