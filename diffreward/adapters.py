"""Rewards that were written for other toolkits, with the signatures that those have.

Nothing is guessed from a function's source: which signature it has is said by the class. What comes
back may be a tensor, an array or a list, with None or NaN for "no score".
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffreward.reward import Reward, RewardError, imported, name_of
from diffreward.samples import Samples, images, texts

Foreign = str | Callable[..., Any]
"""A callable, or where it is: ``file.py:name`` or ``package.module:name``."""


@dataclass(frozen=True)
class DDPOReward(Reward):
    """A reward of ddpo-pytorch, flow_grpo or DiffusionNFT.

    Args:
        path: a function, or where it is, that maps images (B, 3, H, W) in [0, 1], prompts and one
            mapping per image to scores and anything.
        arguments: of a factory that makes this function, as all rewards of these repositories are
            made; without them the function itself is given.
    """

    path: Foreign
    arguments: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        called = _callable(self.path)
        made = called if self.arguments is None else called(**self.arguments)
        object.__setattr__(self, "_call", made)

    _call: Callable[..., Any] = field(init=False, repr=False, compare=False)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        found = self._call(images(samples), list(prompts), [{} for _ in prompts])
        if not isinstance(found, tuple) or len(found) != 2:
            raise RewardError(
                f"{name_of(self._call)} returned a {type(found).__name__}; a reward of "
                "ddpo-pytorch returns a pair of scores and info"
            )
        return _scores(found[0], len(prompts), self._call)


@dataclass(frozen=True)
class TRLReward(Reward):
    """A reward function of TRL: prompts, completions and columns -> one number or None each.

    Coroutines are waited for. Completions are strings, not conversations.

    Args:
        path: a function, or where it is, of the keyword arguments ``prompts`` and ``completions``,
            and of more.
        columns: further keyword arguments, the same in every call, such as what a dataset of TRL
            would have held.
    """

    path: Foreign
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_call", _callable(self.path))

    _call: Callable[..., Any] = field(init=False, repr=False, compare=False)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        found = self._call(prompts=list(prompts), completions=list(texts(samples)), **self.columns)
        if inspect.iscoroutine(found):
            # In a notebook a loop runs already in this thread, where another cannot be waited for.
            found = _outside(found)
        return _scores(found, len(prompts), self._call)


@dataclass(frozen=True)
class ImscoreReward(Reward):
    """A model of imscore: ``model.score(pixels, prompts)``, differentiable in the pixels.

    Args:
        model: what has the method, or makes it when called without arguments.
    """

    model: Any

    def __post_init__(self) -> None:
        made = imported(self.model)() if isinstance(self.model, str) else self.model
        object.__setattr__(self, "_scorer", made)

    _scorer: Any = field(init=False, repr=False, compare=False)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        pixels = images(samples)
        found = self._scorer.score(pixels, list(prompts))
        return _scores(found, len(prompts), type(self._scorer))


def _callable(function: Foreign) -> Callable[..., Any]:
    return imported(function) if isinstance(function, str) else function


def _outside(coroutine: Any) -> Any:
    """What a coroutine returns, from a loop in a thread of its own."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def _scores(found: Any, n: int, source: Any) -> Tensor:
    """Numbers in whatever form as (n,) float32."""
    if isinstance(found, Sequence):
        found = [torch.nan if value is None else float(value) for value in found]
    try:
        values = torch.as_tensor(found)
    except (RuntimeError, TypeError, ValueError) as error:
        raise RewardError(f"{name_of(source)} returned no numbers: {error}") from error
    if values.shape not in ((n,), (n, 1)):
        raise RewardError(
            f"{name_of(source)} returned shape {tuple(values.shape)} for {n} samples; a reward "
            f"returns one number per sample, shape ({n},)"
        )
    return values.reshape(n).float()
