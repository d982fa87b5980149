"""A pipeline's networks, called for the rows that need it, and not at all while it decodes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn
from transformers import Cache

from diffreward.steering.drop_in.hook import tensors_in

NETWORKS = (
    "unet",
    "transformer",
    "transformer_2",
    "transformer_3",
    "denoiser",
    "prior",
    "decoder",
    "dit",
    "model",
    "controlnet",
    "adapter",
)
"""What the components that are called at every step are called in diffusers."""

UNBATCHED = ("img_ids", "txt_ids", "image_rotary_emb", "rope", "position_ids", "img_shapes")
"""Arguments that all rows share, whose first dimension may equal the number of rows by chance."""

Forward = Callable[..., Any]


def networks(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """The networks of a pipeline that its loop calls, by name.

    Raises:
        ValueError: if one of them reuses what it has computed at earlier steps.
    """
    found = {name: vars(pipe).get(name) for name in NETWORKS}
    for name, module in found.items():
        if isinstance(module, CacheMixin) and module.is_cache_enabled:
            raise ValueError(
                f"{name} has a cache of earlier steps, which would not follow particles that are "
                f"selected: call pipe.{name}.disable_cache() first"
            )
    return {name: module for name, module in found.items() if isinstance(module, nn.Module)}


def replaced(module: nn.Module, forward: Forward) -> nn.Module:
    """The same module for all who look at it, with another forward; the original is untouched."""
    stand_in = copy.copy(module)
    stand_in.forward = forward
    return stand_in


class Watched:
    """Calls a network for distinct rows only, in blocks, and remembers what its output looks like.

    Args:
        module: the network.
        particles: rows of the steered call.
        rows: particles that go through the network at a time.
        alike: tells the first particle that each is like, (G * N,), or None if no two are.
    """

    def __init__(
        self, module: nn.Module, particles: int, rows: int, alike: Callable[[], Tensor | None]
    ) -> None:
        self._module, self._particles, self._rows, self._alike = module, particles, rows, alike
        self._outputs: dict[float, Any] = {}
        self.rows = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output for all rows."""
        output = self._call(args, kwargs)
        self._outputs[_batch(args, kwargs) / self._particles] = output
        return output

    def blank(self, particles: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An output for a call with so many particles; its numbers mean nothing."""
        share = particles / self._particles
        # Guidance may stack two calls of the network and make a third alone.
        alike = self._outputs.get(_batch(args, kwargs) / particles)
        output = next(reversed(self._outputs.values())) if alike is None else alike

        def cut(tensor: Tensor) -> Tensor:
            return tensor[: round(len(tensor) * share)] if tensor.ndim else tensor

        return _mapped(output, cut)

    @property
    def called(self) -> bool:
        """Whether the network has been called."""
        return bool(self._outputs)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        batch = _batch(args, kwargs)
        alike = self._alike()
        if alike is None and self._particles <= self._rows:
            self.rows += self._particles
            return self._module(*args, **kwargs)
        alike = torch.arange(self._particles) if alike is None else alike
        distinct, place = alike.unique(return_inverse=True)
        whole = len(distinct) == self._particles <= self._rows
        # What a network has stored of earlier rows is not ours to take apart.
        whole = whole or any(isinstance(value, Cache) for value in kwargs.values())
        if whole or batch % self._particles:
            self.rows += self._particles
            return self._module(*args, **kwargs)
        self.rows += len(distinct)
        blocks = torch.arange(batch // self._particles)[:, None] * self._particles
        outputs = []
        for part in distinct.split(self._rows):
            index = (blocks + part).flatten()
            some = [_picked("", value, index, batch) for value in args]
            named = {name: _picked(name, value, index, batch) for name, value in kwargs.items()}
            outputs.append(self._module(*some, **named))
        parts = [list(tensors_in(output)) for output in outputs]
        streams = len(blocks)

        def joined(columns: tuple[Tensor, ...]) -> Tensor:
            pieces = [c.reshape(streams, len(c) // streams, *c.shape[1:]) for c in columns]
            return torch.cat(pieces, 1)[:, place.to(columns[0].device)].flatten(0, 1)

        whole_tensors = iter([joined(columns) for columns in zip(*parts, strict=True)])
        return _mapped(outputs[0], lambda _: next(whole_tensors))


def _batch(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Rows of the first tensor, which in every network of diffusers is the sample."""
    first = next(tensors_in([*args, *kwargs.values()]), None)
    return 0 if first is None else len(first)


def _picked(name: str, value: Any, index: Tensor, batch: int) -> Any:
    """The rows of an argument, where it has one per row of the batch."""
    if isinstance(value, Tensor):
        rows = value.ndim > 0 and len(value) == batch
        if name in UNBATCHED:
            rows = rows and value.stride(0) == 0  # one row that was expanded over the batch
        return value[index.to(value.device)] if rows else value
    if name in UNBATCHED:
        return value
    if type(value) in (list, tuple):
        return type(value)(_picked(name, item, index, batch) for item in value)
    if type(value) is dict:
        return {key: _picked(key, item, index, batch) for key, item in value.items()}
    return value


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest of lists, tuples and outputs with every tensor changed, in order."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        changed = {key: _mapped(item, change) for key, item in value.items()}
        return type(value)(**changed) if type(value) is not dict else changed
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change) for item in value)
    return value
