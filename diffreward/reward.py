"""What a reward is, and how rewards combine."""

from __future__ import annotations

import importlib
import runpy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffreward.samples import Samples

RewardFunction = Callable[[Samples, Sequence[str]], Tensor]
"""Anything that maps B samples and their B prompts to (B,) scores: the contract of `Reward`."""


class RewardError(ValueError):
    """A reward broke its contract; the message says which sentence of it, and what it returned."""


class Reward(ABC):
    """Scores a batch of decoded samples; higher is better.

    Wherever a reward is asked for, any callable of this shape will do: a function, a module, a
    lambda in a notebook. Subclassing adds arithmetic: ``2 * a + b`` is a reward. Whether a reward
    can be differentiated is not declared but seen: its output carries a gradient or not.
    """

    @abstractmethod
    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B samples and their B prompts to scores, (B,) float32; NaN means "no score"."""

    def __add__(self, other: RewardFunction | float) -> Reward:
        return WeightedSum([self, _constant(other)], [1.0, 1.0])

    def __sub__(self, other: RewardFunction | float) -> Reward:
        return WeightedSum([self, _constant(other)], [1.0, -1.0])

    def __rsub__(self, other: RewardFunction | float) -> Reward:
        return WeightedSum([_constant(other), self], [1.0, -1.0])

    def __mul__(self, factor: float) -> Reward:
        return WeightedSum([self], [factor])

    def __neg__(self) -> Reward:
        return WeightedSum([self], [-1.0])

    __radd__ = __add__
    __rmul__ = __mul__


class WeightedSum(Reward):
    """The sum of some rewards, each times its weight.

    Args:
        rewards: one or more.
        weights: one per reward, in units of the sum per unit of that reward.

    Raises:
        ValueError: if there is not one weight per reward.
    """

    def __init__(
        self, rewards: Sequence[Reward | RewardFunction], weights: Sequence[float]
    ) -> None:
        if not rewards or len(rewards) != len(weights):
            raise ValueError(f"got {len(rewards)} rewards and {len(weights)} weights")
        self.rewards = tuple(rewards)
        self.weights = tuple(float(weight) for weight in weights)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        scores = score_all(self.rewards, samples, prompts)
        terms = [weight * one for weight, one in zip(self.weights, scores, strict=True)]
        return torch.stack(terms).sum(0)


@dataclass(frozen=True)
class Constant(Reward):
    """The same score for every sample: what a number means in ``reward + number``."""

    value: float

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return torch.full((len(prompts),), float(self.value))


class Function(Reward):
    """A plain function as a reward, named as a configuration file can name it.

    Args:
        path: ``file.py:name`` or ``package.module:name`` of a function that maps samples and
            prompts to scores, (B,).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the path is not of this form, or there is nothing callable of that name.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._function = imported(path)
        self.__name__ = path

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        # Also functions of other signatures, which adapters call.
        return self._function(*arguments, **named)


def score(reward: RewardFunction, samples: Samples, prompts: Sequence[str]) -> Tensor:
    """Call a reward and hold it to its contract: (B,) float32, infinite scores become NaN.

    Raises:
        ValueError: if there is not one prompt per sample.
        RewardError: if the reward returns something else than B floating-point numbers.
    """
    if len(samples) != len(prompts):
        raise ValueError(f"got {len(samples)} samples and {len(prompts)} prompts")
    scores = reward(samples, prompts)
    if not isinstance(scores, Tensor):
        raise RewardError(
            f"{name_of(reward)} returned a {type(scores).__name__}; a reward returns a tensor of "
            f"shape ({len(prompts)},)"
        )
    if scores.shape != (len(prompts),):
        raise RewardError(
            f"{name_of(reward)} returned shape {tuple(scores.shape)} for {len(prompts)} samples; a "
            f"reward returns one number per sample, shape ({len(prompts)},)"
        )
    if not scores.is_floating_point():
        raise RewardError(f"{name_of(reward)} returned {scores.dtype}; scores are floating point")
    return scores.float().masked_fill(scores.isinf(), torch.nan)


def score_all(
    rewards: Sequence[RewardFunction], samples: Samples, prompts: Sequence[str]
) -> Tensor:
    """The scores of each of R rewards, (R, B) float32, where the samples are; as `score`."""
    device = samples.device
    return torch.stack([score(reward, samples, prompts).to(device) for reward in rewards])


def name_of(reward: RewardFunction) -> str:
    """What to call a reward in messages and reports."""
    return str(getattr(reward, "__name__", type(reward).__name__))


def imported(path: str) -> Callable[..., Any]:
    """What ``file.py:name`` or ``package.module:name`` names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the path is not of this form, or there is nothing callable of that name.
    """
    source, colon, name = path.rpartition(":")
    if not colon:
        raise ValueError(f"{path!r} is neither file.py:name nor package.module:name")
    if source.endswith(".py"):
        if not Path(source).is_file():
            raise FileNotFoundError(f"there is no file {source} to take {name} from")
        names = runpy.run_path(source)
    else:
        names = vars(importlib.import_module(source))
    if not callable(names.get(name)):
        there = [n for n, v in names.items() if callable(v) and not n.startswith("_")]
        raise ValueError(f"{source} has no function {name}; it has {there}")
    function: Callable[..., Any] = names[name]
    return function


def _constant(value: RewardFunction | float) -> RewardFunction:
    return value if callable(value) else Constant(value)
