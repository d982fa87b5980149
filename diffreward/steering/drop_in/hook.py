"""Stepping in at a scheduler's `step`, the one call that every diffusers pipeline makes.

One scheduler object gets another `step`; its class stays, so that `isinstance`, comparisons of its
type and `inspect.signature` see what they expect. A deep copy that a pipeline makes is hooked too.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

Step = Callable[[Mapping[str, Any]], Any]
"""A scheduler's own step, of named arguments."""


class Hook(ABC):
    """Answers the calls of a scheduler's `step`; deep-copied with it."""

    @abstractmethod
    def __call__(self, scheduler: Any, step: Step, arguments: dict[str, Any]) -> Any:
        """Answer one call, given the scheduler's own step and the named arguments."""

    def scheduled(self, scheduler: Any) -> None:  # noqa: B027 - most have nothing to do then
        """Do what is to be done when `set_timesteps` has just ended."""


def hook(scheduler: Any, answering: Hook) -> None:
    """Let a hook answer every call of `scheduler.step`, on this object and its deep copies."""
    scheduler.step = _Method(scheduler, "step", answering)
    scheduler.set_timesteps = _Method(scheduler, "set_timesteps", answering)


class _Method:
    """A method of one object, with the signature of the class's own."""

    def __init__(self, scheduler: Any, name: str, hook: Hook) -> None:
        self._scheduler, self._name, self._hook = scheduler, name, hook
        self._own = getattr(type(scheduler), name)
        self.__name__, self.__doc__ = name, self._own.__doc__
        self.__signature__ = inspect.signature(self._own.__get__(scheduler))

    def __deepcopy__(self, memo: dict[int, Any]) -> _Method:
        # The scheduler is being copied, so that its copy is in the memo; the hook is copied once.
        scheduler = copy.deepcopy(self._scheduler, memo)
        return _Method(scheduler, self._name, copy.deepcopy(self._hook, memo))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._name != "step":
            self._own(self._scheduler, *args, **kwargs)
            return self._hook.scheduled(self._scheduler)
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        for name, parameter in self.__signature__.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                arguments |= arguments.pop(name)
        return self._hook(self._scheduler, self._step, arguments)

    def _step(self, arguments: Mapping[str, Any]) -> Any:
        return self._own(self._scheduler, **arguments)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dictionaries (so in the outputs of diffusers)."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
