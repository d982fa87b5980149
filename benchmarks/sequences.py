"""What the experiments on sequences share: methods, judged alike, over seeds, and their table.

python benchmarks/dna.py run all --seeds 0 1 2 --output runs/dna        one file per run
python benchmarks/dna.py table runs/dna > benchmarks/dna.md

A run that is there already is not repeated, so several processes can share a folder.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from methods import Rows, learn
from torch import Tensor

from diffreward.algorithm import Algorithm, Batch
from diffreward.diffusion import decode, draw
from diffreward.learner import Learner
from diffreward.pipelines.masked_diffusion import MaskedDiffusion
from diffreward.policy import Adaptation, Full
from diffreward.processes import Processes
from diffreward.random import stream
from diffreward.reward import RewardFunction
from diffreward.rewards.cached import Cached
from diffreward.samples import Samples, Tokens
from diffreward.settings import Training
from diffreward.steering import SteeringMethod, steer_diffusion
from diffreward.steering.steered import StateValue

FULL = Full()
Judge = Callable[[Tokens], dict[str, float]]
"""Measures of all samples of a run."""


Fitting = Callable[[MaskedDiffusion, RewardFunction, int], StateValue]
"""Makes a value function for a model and a reward, with a seed."""


@dataclass(frozen=True)
class Steered:
    """A method of steering, and by what it judges unfinished samples.

    Args:
        method: the method.
        value: fits a value function, whose cost counts; by default the reward is asked.
    """

    method: SteeringMethod
    value: Fitting | None = None


@dataclass(frozen=True)
class Trained:
    """A method of fine-tuning, and for how long.

    Args:
        algorithm: the method.
        updates: of it.
        samples: per update.
        learning_rate: of AdamW.
        adaptation: what is trained.
    """

    algorithm: Algorithm[Any]
    updates: int
    samples: int = 64
    learning_rate: float = 1e-3
    adaptation: Adaptation = FULL


@dataclass(frozen=True)
class Searched:
    """A search without a model, for comparison.

    Args:
        search: maps a reward, a number of samples and a seed to what is found.
    """

    search: Callable[[RewardFunction, int, int], Tokens]


@dataclass(frozen=True)
class Experiment:
    """A model, a reward and methods.

    Args:
        title: of the table, in Markdown, with what has to be said.
        model: makes the pretrained diffusion, anew for each run.
        reward: what methods are given.
        judge: measures samples, the reward among them.
        samples: of each run.
        methods: rows of the table in their order; none is the model itself.
        order: the names of the measures, with the number of digits that are shown.
        autocast: whether networks compute in bfloat16, which is faster on CPUs that have it.
    """

    title: str
    model: Callable[[], MaskedDiffusion]
    reward: RewardFunction
    judge: Judge
    samples: int
    methods: Mapping[str, Steered | Trained | Searched | None]
    order: Mapping[str, int]
    autocast: bool = False


class Calls:
    """Counts the samples that a reward scores."""

    def __init__(self, reward: RewardFunction) -> None:
        self._reward, self.count = reward, 0

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        self.count += len(samples)
        with torch.autocast("cpu", enabled=False):
            return self._reward(samples, prompts)


def run(experiment: Experiment, name: str, seed: int) -> dict[str, Any]:
    """Sample by one method, and measure."""
    model, calls = experiment.model(), Calls(experiment.reward)
    rows, start = Rows(model.network), time.process_time()
    # Without the cache: it would hold copies of the weights that training changes.
    with torch.autocast("cpu", torch.bfloat16, enabled=experiment.autocast, cache_enabled=False):
        samples = samples_of(experiment, name, model, calls, seed)
    spent = {"seconds": time.process_time() - start, "rows": rows.count, "calls": calls.count}
    assert isinstance(samples, Tokens)
    measures = experiment.judge(samples)
    return {"method": name, "seed": seed, **spent, **measures, "sequences": samples.strings()}


def samples_of(
    experiment: Experiment, name: str, model: MaskedDiffusion, calls: Calls, seed: int
) -> Samples:
    """What a method makes of the model and the reward."""
    method, prompts = experiment.methods[name], [""] * experiment.samples
    if isinstance(method, Searched):
        return method.search(Cached(calls), len(prompts), seed)
    if isinstance(method, Steered):
        value = method.value and method.value(model, calls, seed)
        steered = steer_diffusion(
            model, Cached(calls), prompts, method.method, seed, rows=256, value=value
        )
        return steered.samples
    if method is not None:
        train(model, method, calls, seed)
    sources = [[stream(seed, part, i) for i in range(len(prompts))] for part in ("x", "steps")]
    return decode(model, draw(model, model.encode(prompts), *sources, rows=256))


def train(model: MaskedDiffusion, method: Trained, reward: RewardFunction, seed: int) -> None:
    """Fine-tune the model, in place."""
    training = Training(learning_rate=method.learning_rate, ema_decay=0.9, rows=64)
    policy = method.adaptation.attach(model, training.rows, seed)
    learner = Learner(policy, training, Processes(training).accelerator)
    for update in range(1, method.updates + 1):
        batch = Batch([""], method.samples, seed, update)
        learn(method.algorithm, policy, learner, reward, batch, method.learning_rate)
    learner.adopt_average()


def table(experiment: Experiment, folder: Path) -> Iterator[str]:
    """The runs of a folder in Markdown."""
    texts = [file.read_text() for file in sorted(folder.glob("*.json"))]
    runs = [json.loads(text) for text in texts if text]  # a run that goes on is still empty
    names = [*experiment.order, "network rows", "oracle calls", "seconds", "runs"]
    yield experiment.title
    yield f"| | {' | '.join(names)} |"
    yield f"| --- |{' --- |' * len(names)}"
    for name in experiment.methods:
        same = [found for found in runs if found["method"] == name]
        if not same:
            continue
        cells = [_cell([one[m] for one in same], digits) for m, digits in experiment.order.items()]
        cells += [f"{fmean(one[m] for one in same):.0f}" for m in ("rows", "calls", "seconds")]
        yield f"| {name} | {' | '.join(cells)} | {len(same)} |"


def _cell(values: list[float], digits: int) -> str:
    """Mean over seeds and, of several, its standard error."""
    text = f"{fmean(values):.{digits}f}"
    return text + (f" ± {stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else "")


def main(
    experiment: Experiment, description: str | None, arguments: Sequence[str] | None = None
) -> None:
    """Run, or print the table; arguments are the command line's if not given."""
    parser = argparse.ArgumentParser(description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("methods", nargs="+", help="rows of the table, or all")
    running.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    running.add_argument("--output", type=Path, required=True)
    commands.add_parser("table").add_argument("folder", type=Path)
    given = parser.parse_args(arguments)
    if given.command == "table":
        print("\n".join(table(experiment, given.folder)))
        return
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    names = list(experiment.methods) if given.methods == ["all"] else given.methods
    for seed in given.seeds:
        for name in names:
            file = given.output / f"{name}-{seed}.json".replace(" ", "-").replace("/", "-")
            if file.exists():
                continue
            file.touch()
            found = run(experiment, name, seed)
            file.write_text(json.dumps(found))
            shown = {key: value for key, value in found.items() if key != "sequences"}
            print(json.dumps(shown), flush=True)
