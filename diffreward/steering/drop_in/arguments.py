"""The arguments of a pipeline call, with an explicit row for every particle.

Pipelines repeat prompts in many ways and not all of them well (masks in another order than
embeddings, pooled embeddings forgotten, `num_images_per_prompt` set back to 1), so that nothing is
left to them: N particles of a prompt are N prompts.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL.Image import Image
from torch import Generator, Tensor

from diffreward.random import Source, stream

COPIES = (
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "num_waveforms_per_prompt",
    "num_sequences_per_prompt",
)
"""How many outputs of one prompt are asked for: each is a system of its own."""

ROWS = ("prompt_embeds", "class_labels", "image_embeds", "input_ids", "image", "video")
"""What has one row per prompt, and so tells how many there are; the first that is given does."""


@dataclass(frozen=True)
class Expanded:
    """A call of a pipeline with G * N rows, system by system.

    Args:
        keywords: what the pipeline is called with.
        prompts: of the G systems; empty strings where the call has none.
        particles: N.
        noise: random numbers of the rows: what the call gives as generator.
        seeds: a number per system, (G,), that depends on those random numbers, takes nothing from
            them, and is the same in whatever company the system's generator comes.
    """

    keywords: Mapping[str, Any]
    prompts: tuple[str, ...]
    particles: int
    noise: Source
    seeds: tuple[int, ...]

    def with_keywords(self, **changed: Any) -> Expanded:
        """The same call with some arguments changed."""
        return replace(self, keywords={**self.keywords, **changed})

    def take(self, rows: Tensor) -> dict[str, Any]:
        """The arguments of a call with only some of the rows."""
        total, picked = len(self.prompts) * self.particles, rows.tolist()
        return {
            name: _rows(value, picked, total) if _per_row(name) else value
            for name, value in self.keywords.items()
        }


def expand(
    pipe: DiffusionPipeline, args: Sequence[Any], keywords: Mapping[str, Any], particles: int
) -> Expanded:
    """Read the arguments of a plain call, and give each of its outputs N rows.

    Raises:
        TypeError: if the pipeline does not take these arguments.
        ValueError: if generators or latents are neither one per output nor one per particle.
    """
    signature = inspect.signature(type(pipe).__call__)
    given = dict(signature.bind_partial(pipe, *args, **keywords).arguments)
    given.pop("self", None)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    prompt = signature.parameters.get("prompt")
    if prompt is not None and isinstance(prompt.default, str):
        given.setdefault("prompt", prompt.default)
    copies = 1
    for name in COPIES:
        if name in signature.parameters:
            copies = given.get(name) or 1
            given[name] = 1
    prompts = _count(given)
    if prompts is None:
        prompts = given.get("batch_size", 1)
    if "batch_size" in signature.parameters:
        given["batch_size"] = prompts * copies * particles
    systems, noise = prompts * copies, given.get("generator")
    if isinstance(noise, list):
        given["generator"] = noise = _children(noise, systems, particles)
    if "num_frames" not in signature.parameters or "prompt" not in signature.parameters:
        # Pipelines that continue a picture as a video take one for all rows; others one per row.
        given = {name: _listed(value, prompts) for name, value in given.items()}
    expanded = {
        name: _repeat(name, value, prompts, copies, particles) for name, value in given.items()
    }
    texts = tuple(text for text in _texts(given, prompts) for _ in range(copies))
    return Expanded(expanded, texts, particles, noise, _seeds(noise, systems, particles))


def _count(given: Mapping[str, Any]) -> int | None:
    """How many prompts there are, if something tells."""
    prompt = given.get("prompt")
    if prompt is not None:
        return len(prompt) if isinstance(prompt, list) else 1
    for name in ROWS:
        value = given.get(name)
        if value is not None:
            return len(value) if isinstance(value, list | Tensor) else 1
    return None


def _texts(given: Mapping[str, Any], prompts: int) -> list[str]:
    """What the reward is told: prompts, or class labels, or nothing."""
    for name in ("prompt", "class_labels"):
        value = given.get(name)
        if value is not None:
            values = value if isinstance(value, list | Tensor) else [value]
            return [str(item.item() if isinstance(item, Tensor) else item) for item in values]
    return [""] * prompts


def _per_row(name: str) -> bool:
    """Whether an argument of this name has one item per row: prompts and what stands for them."""
    if "ip_adapter" in name:
        return False  # one item per adapter, which serves all rows
    words = ("prompt", "embeds", "mask", "latents", "labels", "image", "video", "input_ids")
    return name in ("generator", "audio", "lyrics") or (
        any(word in name for word in words) and not name.startswith(("num_", "output_", "return_"))
    )


def _repeat(name: str, value: Any, prompts: int, copies: int, particles: int) -> Any:
    systems = prompts * copies
    if not _per_row(name) or name == "generator" or systems * particles == 1:
        return value
    if name == "latents":
        return _latents(value, systems, particles)
    times = copies * particles
    if isinstance(value, str) or (
        name in ("prompt", "class_labels") and not isinstance(value, list | Tensor)
    ):
        return [value] * (prompts * times)
    if isinstance(value, Tensor):
        return value.repeat_interleave(times, 0) if len(value) == prompts else value
    if isinstance(value, list) and len(value) == prompts:
        return [item for item in value for _ in range(times)]
    return value


def _listed(value: Any, prompts: int) -> Any:
    return [value] * prompts if isinstance(value, Image) else value


def _latents(value: Any, systems: int, particles: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    if len(value) == systems * particles:
        return value.clone()  # some pipelines work in the tensor that they are given
    if len(value) != systems:
        raise ValueError(
            f"got {len(value)} latents for {systems} outputs of {particles} particles each; give "
            f"{systems} (each particle starts there) or {systems * particles}"
        )
    return value.repeat_interleave(particles, 0)


def _children(parents: list[Generator], systems: int, particles: int) -> list[Generator]:
    """A generator per particle; the first of a system has its parent's numbers."""
    if len(parents) == systems * particles:
        return list(parents)
    if len(parents) != systems:
        raise ValueError(
            f"got {len(parents)} generators for {systems} outputs of {particles} particles each; "
            f"give {systems} or {systems * particles}, or one for all"
        )
    children = []
    for parent in parents:
        children.append(parent)
        for n in range(1, particles):
            seed = stream(parent.initial_seed(), "particle", n).initial_seed()
            children.append(Generator(parent.device).manual_seed(seed))
    return children


def _seeds(noise: Source, systems: int, particles: int) -> tuple[int, ...]:
    if isinstance(noise, Sequence):
        return tuple(parent.initial_seed() for parent in noise[::particles])
    # The state, not a number drawn from it: a steered call leaves the plain call's noise alone.
    state = torch.get_rng_state().numpy().tobytes().hex() if noise is None else noise.initial_seed()
    return tuple(stream(0, state, g).initial_seed() for g in range(systems))


def _rows(value: Any, rows: Sequence[int], total: int) -> Any:
    if isinstance(value, Tensor):
        return value[list(rows)] if len(value) == total else value
    if isinstance(value, list) and len(value) == total:
        return [value[row] for row in rows]
    return value
