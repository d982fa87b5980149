"""What every pipeline of the zoo is held to, whatever it makes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from zoo.entry import Entry

from diffreward.samples import Samples, Texts
from diffreward.steering import FKSteering, SteeredPipeline
from diffreward.steering.drop_in.arguments import expand
from diffreward.steering.methods import ONCE
from diffreward.steering.resampling import Resampling

UNSUPPORTED = {
    "MarigoldDepthPipeline": "decoder",  # makes depth maps
    "KandinskyV22PriorPipeline": "decoder",  # makes embeddings
    "StableCascadePriorPipeline": "decoder",  # makes embeddings
    "KarrasVePipeline": "no sample",  # its scheduler has a `step` of its own kind
    "DiTPipeline": "steps 4 rows and not 2",  # steps prompt and no prompt as rows
    "TextToVideoSDPipeline": "steps 4 rows and not 2",  # steps frames as rows
    "CosmosTextToWorldPipeline": "steps 4 rows and not 2",  # steps twice at each level
    "SkyReelsV2DiffusionForcingPipeline": "cannot follow",  # one scheduler per frame
    "SkyReelsV2DiffusionForcingPipeline-asynchronous": "cannot follow",
}
"""Pipelines that cannot be steered as they are called here, and a word of what they say."""

ROUNDING = {
    "AllegroPipeline": 1e-4,  # its autoencoder works in overlapping tiles
    "HunyuanVideoPipeline": 1e-5,
    "LTX2Pipeline": 1e-5,
    "SkyReelsV2Pipeline": 1e-5,
    "StableAudioPipeline": float("inf"),  # a Brownian tree of each row draws its noise
    "WanImageToVideoPipeline": 1e-5,
}
"""How far a row's result depends on its place in the batch, where it does."""


def energy(samples: Samples, prompts: Sequence[str]) -> Tensor:
    """The mean square of everything that a sample consists of; of sound, the mean power."""
    column = next(iter(samples._columns().values()))
    if isinstance(samples, Texts):
        column = torch.tensor([[sum(map(ord, text)) / 1e3] for text in samples.strings])
    return column.float().square().flatten(1).mean(1)


def build(entry: Entry, folder: Path) -> DiffusionPipeline:
    """The pipeline without its progress bars."""
    pipe = entry.build(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arrays(output: Any) -> list[np.ndarray]:
    """All numbers in an output, field by field."""
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [array for item in output for array in arrays(item)]
    if isinstance(output, Image.Image | np.ndarray):
        return [np.asarray(output, dtype=np.float64)]
    return [output.double().numpy()] if isinstance(output, Tensor) else []


def difference(one: Any, other: Any) -> float:
    """The largest difference between two outputs."""
    pairs = list(zip(arrays(one), arrays(other), strict=True))
    assert pairs
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def rows_of(pipe: DiffusionPipeline, call: Mapping[str, Any], particles: int) -> dict[str, Any]:
    """The arguments of the plain call of as many rows."""
    return dict(expand(pipe, (), call, particles).keywords)


def plain(pipe: DiffusionPipeline, call: Mapping[str, Any], seed: int = 0) -> Any:
    """The pipeline's own output."""
    torch.manual_seed(seed)
    return pipe(**call)


def steered(pipe: SteeredPipeline, call: Mapping[str, Any], seed: int = 0) -> Any:
    """All particles of a steered call."""
    torch.manual_seed(seed)
    pipe(**call)
    return pipe.last.all_particles()


def reversing(particles: int, at: float) -> FKSteering:
    """Turns the order of the particles round, once."""
    turned = Resampling(lambda w, _: torch.arange(particles).flip(0).expand(len(w), -1))
    return FKSteering(
        particles, 1.0, resampling=turned, ess_threshold=1.0, interval=ONCE, start=at, stop=1.0
    )


def looking(particles: int) -> FKSteering:
    """Scores every state and does nothing about it."""
    return FKSteering(particles, 0.0, ess_threshold=0.0, interval=1, start=0.0, stop=1.0)


def turned_difference(found: Any, expected: Any) -> float:
    """The largest difference between one output and another whose rows are in reverse order."""
    pairs = zip(_stacked(found), _stacked(expected), strict=True)
    return max(float(np.abs(a - np.flip(b, 0)).max()) for a, b in pairs)


def _stacked(output: Any) -> list[np.ndarray]:
    """Each field as one array whose first dimension counts the particles."""
    values = [v for v in (output.values() if isinstance(output, Mapping) else output) if arrays(v)]
    return [np.stack(arrays(v)) if isinstance(v, list) else arrays(v)[0] for v in values]
