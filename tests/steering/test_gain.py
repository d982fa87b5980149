"""FK steering finds more reward than best-of-N for as many rows of the network, on the whole zoo.

Best-of-N takes the same steps, with the same noise, and selects only at the end: a gain is due to
the selections. Random networks, so that nothing can be gained where a state says little of the
reward: gains are pooled.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from steering.drop_in_cases import UNSUPPORTED, build, energy
from torch import Tensor
from zoo.check import entries

from diffreward.steering import FKSteering, steer

MEDIA = ("images", "videos", "audio")
ENTRIES = {
    entry.name: entry
    for entry in entries()
    if entry.name not in UNSUPPORTED and entry.medium in MEDIA
}
QUICK = [
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "DDPMPipeline",
    "LTXPipeline",
    "CogVideoXPipeline-DPM",
    "AudioLDM2Pipeline",
]
SYSTEMS, FK = 8, FKSteering(4, interval=1, start=0.2, stop=0.8)


def longer(call: Mapping[str, object]) -> dict[str, object]:
    """Of 8 steps, if the pipeline has more than two and is asked for a number."""
    steps = call.get("num_inference_steps", 0)
    return {**call, "num_inference_steps": 8} if isinstance(steps, int) and steps > 2 else {**call}


def found(pipe: DiffusionPipeline, method: FKSteering, call: dict[str, Any]) -> tuple[Tensor, int]:
    """Rewards of all particles, (SYSTEMS, N), and the rows that the network has seen."""
    steered = steer(pipe, energy, method)
    texts = "prompt" in call and all(
        isinstance(value, str | int | float) for value in call.values()
    )
    calls = [{**call, "prompt": [call["prompt"]] * SYSTEMS}] if texts else [call] * SYSTEMS
    rewards, rows = [], 0
    for seed, arguments in enumerate(calls):
        torch.manual_seed(seed)
        steered(**arguments)
        rewards.append(steered.last.rewards)
        rows += steered.last.cost.network_rows
    return torch.cat(rewards), rows


def gain(name: str, folder: Path) -> Tensor:
    """Of each system, (SYSTEMS,), in standard deviations of the reward."""
    pipe, call = build(ENTRIES[name], folder), longer(ENTRIES[name].call)
    rewards, rows = found(pipe, dataclasses.replace(FK, scale=0.0), call)
    spread = rewards.std()
    steered, same_rows = found(pipe, dataclasses.replace(FK, scale=4 / spread.item()), call)
    assert same_rows == rows
    return (steered.amax(1) - rewards.amax(1)) / spread


def test_selection_pays_in_every_medium(tmp_path: Path) -> None:
    """Pooled: 0.5 standard deviations of the reward."""
    gains = torch.stack([gain(name, tmp_path) for name in QUICK])
    assert gains.mean() > 4 * gains.std() / gains.numel() ** 0.5
    assert (gains.mean(1) > 0).all()


@pytest.mark.slow
def test_selection_pays_on_the_whole_zoo(tmp_path: Path) -> None:
    """On 105 of 107 pipelines, by 0.60 standard deviations of the reward on average."""
    gains = torch.stack([gain(name, tmp_path) for name in ENTRIES])
    assert gains.mean() > 4 * gains.std() / gains.numel() ** 0.5
    assert (gains.mean(1) > 0).double().mean() > 0.9
