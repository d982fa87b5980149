"""Rewards that count less where they are not sure: of slightly changed samples, or of each other.

Source: Ctrl-U, Zhang et al. (2025), ICLR, arXiv:2410.11236, equations 2 and 3: a consistency loss L
becomes L exp(-u) + lambda u, where u is how far two predictions of one image are apart in what the
reward model sees in them. There the two come from neighbouring noise levels of a ControlNet; a
reward sees finished samples only, so that here they are a sample and its perturbed copies, and u is
the mean distance of their scores. For ensembles: uncertainty-weighted optimisation, Coste et al.
(2024), ICLR, arXiv:2310.02743.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffreward.random import randn, stream
from diffreward.reward import Reward, RewardFunction, score, score_all
from diffreward.samples import Samples


@dataclass(frozen=True)
class UncertaintyWeighted(Reward):
    """A reward r, corrected by its uncertainty u; differentiable if the reward is.

    The score is r - penalty * u, a lower confidence bound, which makes sense for rewards of any
    sign. With a ceiling it is the paper's form, whose loss is L = ceiling - r: the score is
    ceiling - L exp(-u) - penalty * u, so that an uncertain sample also pulls less. Both are r
    where u is 0. (r exp(-u) is not offered: uncertainty would raise a negative reward.)

    u is the mean of abs(r - r') over the perturbed views, in units of the reward. The perturbation
    depends on the seed, the number of the view and the place in the sample, so that all samples of
    a shape get the same one and the score does not depend on the batch. Perturbed pixels may be
    outside [0, 1] by a few sizes.

    Args:
        reward: higher is better.
        views: scored per sample, itself included; 2 as in the paper.
        penalty: of u; lambda of the paper, whose released code has 1.
        size: standard deviation of the perturbation, in units of the samples' first floating-point
            tensor: 0.02 are 5 of 255 levels of a pixel, which the eye hardly sees.
        ceiling: no reward is above; gives the paper's form.
        seed: of the perturbations.

    Raises:
        ValueError: if a number is out of its range.
    """

    reward: Reward | RewardFunction
    views: int = 2
    penalty: float = 1.0
    size: float = 0.02
    ceiling: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.views < 2 or self.penalty < 0 or not self.size > 0:
            raise ValueError(
                f"got {self.views} views, penalty {self.penalty} and size {self.size}; expected at "
                "least 2, at least 0, and above 0"
            )

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B samples and their B prompts to scores, (B,) float32.

        Raises:
            TypeError: if the samples have no floating-point tensor.
            ValueError: if a reward is above the ceiling.
        """
        first = score(self.reward, samples, prompts)
        others = [
            score(self.reward, _perturbed(samples, self.size, self.seed, view), prompts)
            for view in range(1, self.views)
        ]
        u = (torch.stack(others) - first).abs().mean(0)
        if self.ceiling is None:
            return first - self.penalty * u
        loss = self.ceiling - first
        if bool((loss < 0).any()):
            raise ValueError(
                f"got the reward {first.nan_to_num(-torch.inf).max().item():.6g}, above the "
                f"ceiling {self.ceiling:.6g}"
            )
        return self.ceiling - loss * torch.exp(-u) - self.penalty * u


@dataclass(frozen=True)
class PessimisticEnsemble(Reward):
    """The mean of several rewards less a penalty times their variance.

    The variance, divided by the number of rewards, is in squared units of them: rewards of one
    scale belong here, such as one model trained from several seeds.

    Args:
        rewards: two or more.
        penalty: of the variance, in 1 / unit of reward.

    Raises:
        ValueError: if there are fewer than two rewards, or the penalty is negative.
    """

    rewards: Sequence[Reward | RewardFunction]
    penalty: float = 1.0

    def __post_init__(self) -> None:
        if len(self.rewards) < 2 or self.penalty < 0:
            raise ValueError(
                f"got {len(self.rewards)} rewards and penalty {self.penalty}; expected at least 2 "
                "and at least 0"
            )

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        scores = score_all(self.rewards, samples, prompts)
        return scores.mean(0) - self.penalty * scores.var(0, correction=0)


def _perturbed(samples: Samples, size: float, seed: int, view: int) -> Samples:
    """The samples with Gaussian noise in their first floating-point tensor."""
    floating = {
        name: value
        for name, value in vars(samples).items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    if not floating:
        raise TypeError(
            f"{type(samples).__name__} have no floating-point tensor that could be perturbed"
        )
    name, values = next(iter(floating.items()))
    noise = randn((1, *values.shape[1:]), stream(seed, "view", view), values.device)
    return replace(samples, **{name: values + size * noise.to(values.dtype)})
