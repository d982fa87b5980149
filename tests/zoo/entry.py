"""One tiny pipeline: how it is made and called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Entry:
    """A pipeline class of diffusers, small enough for a call in a second.

    `build` takes a folder for tokenizer files. `call` holds the arguments of a plain call for one
    prompt, without generator. `medium` is what it makes: images, videos, audio, text or tensor.
    """

    name: str
    build: Callable[[Path], DiffusionPipeline]
    call: Mapping[str, object] = field(default_factory=dict)
    medium: str = "images"
