"""Rewards that change with training: multipliers, running statistics, a memory of past samples.

Such a reward takes in what it scores while a round of training goes on, and its state moves on when
the round ends: all samples of a round are scored alike, evaluation changes nothing, and the state
is kept in checkpoints, so that a resumed run goes on as if it had not been interrupted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from diffreward.reward import Reward

_SHOWN = 8
"""Numbers of a state, at most, that are worth a curve each."""


class Adaptive(Reward):
    """A reward with a state, which what it has scored in training moves on.

    `__call__` never changes scores that are to come in the same round; where `adapting` is true it
    keeps aside, without gradient, what `advance` needs.
    """

    adapting: bool = False
    """Whether a round of training goes on; set by `adapting` only."""

    @abstractmethod
    def advance(self) -> None:
        """Move the state on by what was kept aside in a round, and forget that.

        All processes of a run call it at the same time, and have the same state afterwards: it
        gathers what they have seen. Nothing may have been seen.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The state, by name."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a state that `tensors` gave."""


@contextmanager
def adapting(reward: object) -> Iterator[None]:
    """A round of training: all that is adaptive in a reward takes in what it scores.

    The states move on at the end of the round; not if it ends in an error.
    """
    parts = list(adaptive_parts(reward).values())
    for part in parts:
        part.adapting = True
    try:
        yield
    finally:
        for part in parts:
            part.adapting = False
    for part in parts:
        part.advance()


def adaptive_parts(reward: object) -> dict[str, Adaptive]:
    """A reward and those that it is made of, as far as they are adaptive, by where they are."""
    found: dict[str, Adaptive] = {}
    seen: set[int] = set()

    def visit(value: object, path: str) -> None:
        if id(value) in seen:
            return
        if isinstance(value, Reward):
            seen.add(id(value))
            if isinstance(value, Adaptive):
                found[path] = value
            for name, inner in vars(value).items():
                visit(inner, f"{path}.{name}")
        elif isinstance(value, list | tuple):
            for number, inner in enumerate(value):
                visit(inner, f"{path}.{number}")
        elif isinstance(value, Mapping):
            for name, inner in value.items():
                visit(inner, f"{path}.{name}")

    visit(reward, "reward")
    return found


def adaptive_tensors(reward: object) -> dict[str, Tensor]:
    """The states of all that is adaptive in a reward, by name."""
    return {
        f"{path}/{name}": tensor
        for path, part in adaptive_parts(reward).items()
        for name, tensor in part.tensors().items()
    }


def adaptive_metrics(reward: object) -> dict[str, float]:
    """The numbers among the states, such as multipliers, by name; what is longer is left out."""
    return {
        f"{name}.{i}": value
        for name, tensor in adaptive_tensors(reward).items()
        if tensor.numel() <= _SHOWN
        for i, value in enumerate(tensor.flatten().tolist())
    }


def load_adaptive(reward: object, tensors: Mapping[str, Tensor]) -> None:
    """Go on from what `adaptive_tensors` gave of the same reward; other tensors are left alone."""
    for path, part in adaptive_parts(reward).items():
        prefix = f"{path}/"
        own = {name: t for name, t in tensors.items() if name.startswith(prefix)}
        part.load({name.removeprefix(prefix): t for name, t in own.items()})
