"""Small training runs of a tiny Stable Diffusion, in this process or through the command line."""

import json
from pathlib import Path

import tiny
import torch
from colours import blueness, redness
from safetensors.torch import load_file
from torch import Tensor

from diffreward.algorithm import Algorithm
from diffreward.algorithms.ddpo import DDPO
from diffreward.evaluation import Evaluation
from diffreward.pipelines.stable_diffusion import StableDiffusion
from diffreward.policy import LoRA
from diffreward.reward import RewardFunction
from diffreward.settings import Training
from diffreward.training import Run, train

PROMPTS = ["a red cat", "a dog", "a photo of a cat", "blue on red", "a cat on a dog"]


def run(
    folder: Path,
    output: str = "run",
    updates: int = 4,
    algorithm: Algorithm | None = None,
    reward: RewardFunction = redness,
    **settings: object,
) -> Run:
    """Train a fresh tiny model; everything of the run is determined by the arguments."""
    values = {"prompts_per_update": 3, "samples_per_prompt": 3, "rows": 4, "checkpoint_every": 2}
    return train(
        StableDiffusion(tiny.stable_diffusion(folder), 3, guidance_scale=2.0),
        algorithm or DDPO(step_fraction=0.7, inner_steps=2),
        reward,
        PROMPTS,
        Evaluation(rewards={"blueness": blueness}, samples=6, every=2, shown=3),
        LoRA(4),
        Training(
            updates=updates,
            output=str(folder / output),
            learning_rate=1e-2,
            **{**values, **settings},  # type: ignore[arg-type]
        ),
    )


def metrics(folder: Path) -> list[dict[str, object]]:
    """The lines of a run's metrics, without what the clock says."""
    file = folder / "metrics.jsonl"
    lines = map(json.loads, file.read_text().splitlines() if file.is_file() else [])
    return [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines]


def weights(folder: Path) -> dict[str, Tensor]:
    """The LoRA weights of a finished run."""
    return load_file(folder / "weights" / "pytorch_lora_weights.safetensors")


def assert_equal_runs(one: Path, other: Path) -> None:
    """Bitwise equal weights and metrics."""
    assert metrics(one) == metrics(other)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


CONFIG = """
diffusion:
  class_path: StableDiffusion
  init_args: {{pipeline: {folder}/pipe, num_steps: 3, guidance_scale: 2.0}}
algorithm: {{class_path: DDPO, init_args: {{step_fraction: 0.7, inner_steps: 2}}}}
adaptation: {{class_path: LoRA, init_args: {{rank: 4}}}}
reward: {tests}/colours.py:redness
prompts: {folder}/prompts.txt
evaluation: {{samples: 6, every: 2, shown: 3, rewards: {{blueness: "{tests}/colours.py:blueness"}}}}
updates: 4
prompts_per_update: 4
samples_per_prompt: 3
rows: 3
checkpoint_every: 1
learning_rate: 1.0e-2
output: {folder}/run
"""


def write_config(folder: Path) -> Path:
    """A configuration of such a run, with the model and the prompts it names."""
    tiny.stable_diffusion(folder).save_pretrained(folder / "pipe")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    file = folder / "config.yaml"
    file.write_text(CONFIG.format(folder=folder, tests=Path(__file__).parent))
    return file
