"""What belongs to a particle besides its state, and goes with it when ancestors are drawn.

That is the solver's memory, the guidance's momentum, and what a pipeline keeps per row in its own
loop: pictures to be continued with their own noise, a larger state of which only a part is stepped.
Rows of one prompt share everything else.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers.guiders import adaptive_projected_guidance, adaptive_projected_guidance_mix
from diffusers.guiders.guider_utils import BaseGuidance
from torch import Tensor
from transformers import Cache

MOMENTUM = (
    adaptive_projected_guidance.MomentumBuffer,
    adaptive_projected_guidance_mix.MomentumBuffer,
)


def same_order(rows: Tensor) -> bool:
    """Whether every particle goes on from itself."""
    return torch.equal(rows, torch.arange(len(rows)))


def reordered(
    pipe: Any, scheduler: Any, arguments: dict[str, Any], rows: Tensor, shared: bool = True
) -> dict[str, Any]:
    """Reorder all that belongs to particles, (B,) int64: each goes on from particle rows[i].

    Args:
        pipe: whose loop is running.
        scheduler: its memory is reordered: every tensor of at least two dimensions with B rows.
        arguments: of its step; they come back reordered, and without a graph.
        rows: the ancestors.
        shared: whether what serves all media of a pipeline is reordered too; once in a step.
    """
    whole = arguments["sample"]._base
    arguments = {
        name: value.detach() if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    if same_order(rows):
        return arguments
    changed = {name: reindexed(value, rows) for name, value in arguments.items()}
    for name, value in vars(scheduler).items():
        vars(scheduler)[name] = reindexed(value, rows)
    sample = arguments["sample"]
    if whole is not None and len(whole) == len(rows):
        # Only a part of the state is stepped; the rest waits in the tensor that it is a part of.
        whole.detach().copy_(whole[rows.to(sample.device)])
    for name, value in _kept_in_loop(pipe):
        if value is whole:
            continue
        if _on_grid(value, sample) or (shared and _embeds(name, value, sample)):
            value.detach().copy_(_blocks(value, rows))
        elif shared and isinstance(value, MOMENTUM):
            value.running_average = reindexed(value.running_average, rows)
        elif shared and isinstance(value, Cache):
            value.reorder_cache(rows.to(sample.device))
        elif shared and _counts(name, value, sample):
            value.copy_(value.index_select(0 if value.ndim == 1 else -2, rows.to(value.device)))
    return changed


def own_guiders(inner: Any) -> None:
    """Give a copied pipeline guiders of its own: they remember earlier steps."""
    for name, component in vars(inner).items():
        if isinstance(component, BaseGuidance):
            vars(inner)[name] = copy.deepcopy(component)


def reindexed(value: Any, rows: Tensor) -> Any:
    """The same value with the rows of its tensors reordered, where they have one per particle."""
    if isinstance(value, Tensor):
        mine = value.ndim > 1 and len(value) == len(rows)
        return value[rows.to(value.device)] if mine else value
    if type(value) in (list, tuple):
        return type(value)(reindexed(item, rows) for item in value)
    if type(value) is dict:
        return {key: reindexed(item, rows) for key, item in value.items()}
    return value


def _kept_in_loop(pipe: Any) -> Iterator[tuple[str, Any]]:
    """The local variables of the pipeline's methods that are running, and its guiders' memory."""
    for component in vars(pipe).values():
        if isinstance(component, BaseGuidance):
            yield from vars(component).items()
    seen: set[int] = set()
    for names in loops(pipe):
        for name, value in names.items():
            if id(value) not in seen:
                seen.add(id(value))
                yield name, value


def loops(pipe: Any) -> Iterator[Mapping[str, Any]]:
    """The local variables of each method of the pipeline that is running, the innermost first.

    A pipeline hands over nothing of its loop but the arguments of a step. What it holds besides is
    reachable only where it is: in the frames of its calls.
    """
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_locals.get("self") is pipe:
            yield frame.f_locals


def _rowwise(value: Any, sample: Tensor) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value._base is not None:
        return False
    return value.ndim > 1 and len(value) > 0 and len(value) % len(sample) == 0


def _on_grid(value: Any, sample: Tensor) -> bool:
    """Whether a local variable holds something per particle on the grid of the state."""
    grid = slice(1, 2) if sample.ndim == 3 else slice(-2, None)  # packed, or height and width
    if not _rowwise(value, sample) or value.ndim != sample.ndim:
        return False
    return bool(value.shape[grid] == sample.shape[grid])


def _embeds(name: str, value: Any, sample: Tensor) -> bool:
    """Whether a local variable holds embeddings, which a pipeline may draw for each particle."""
    return name.endswith("embeds") and _rowwise(value, sample)


def _counts(name: str, value: Any, sample: Tensor) -> bool:
    """Whether a local variable of a loop over tokens is ids (..., B, n), or flags of its rows."""
    if sample.is_floating_point() or not isinstance(value, Tensor):
        return False
    if value.is_floating_point() or value._base is not None:
        return False
    if value.ndim == 1:
        return name.startswith("finished") and len(value) == len(sample)
    return value.ndim > 1 and value.shape[-2] == len(sample)


def _blocks(value: Tensor, rows: Tensor) -> Tensor:
    """Rows reordered in each of the blocks that guidance stacks."""
    blocks = torch.arange(len(value) // len(rows))[:, None] * len(rows)
    return value[(blocks + rows).flatten().to(value.device)]
