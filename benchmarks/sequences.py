"""What the experiments on sequences share: methods, judged alike, over seeds, and their table."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import runs
from diffreward.algorithm import Algorithm, Batch
from diffreward.diffusion import decode, draw
from diffreward.pipelines.masked_diffusion import MaskedDiffusion
from diffreward.policy import Adaptation, Full
from diffreward.random import stream
from diffreward.reward import RewardFunction
from diffreward.rewards.cached import Cached
from diffreward.samples import Samples, Tokens
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


def run(experiment: Experiment, name: str, seed: int) -> runs.Run:
    """Sample by one method, and measure."""
    model, calls = experiment.model(), Calls(experiment.reward)
    rows, start = runs.Rows(model.network), time.process_time()
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
        batches = [Batch([""], method.samples, seed, i + 1) for i in range(method.updates)]
        rate, adaptation = method.learning_rate, method.adaptation
        runs.train(model, adaptation, method.algorithm, calls, batches, rate, rows=64)
    sources = [[stream(seed, part, i) for i in range(len(prompts))] for part in ("x", "steps")]
    return decode(model, draw(model, model.encode(prompts), *sources, rows=256))


def table(experiment: Experiment, finished: list[runs.Run]) -> Iterator[str]:
    """The runs in Markdown."""
    names = [*experiment.order, "network rows", "oracle calls", "seconds", "runs"]
    yield experiment.title
    yield f"| | {' | '.join(names)} |"
    yield f"| --- |{' --- |' * len(names)}"
    for name in experiment.methods:
        same = [found for found in finished if found["method"] == name]
        if not same:
            continue
        order = experiment.order.items()
        cells = [runs.cell([one[m] for one in same], digits) for m, digits in order]
        cells += [f"{fmean(one[m] for one in same):.0f}" for m in ("rows", "calls", "seconds")]
        yield f"| {name} | {' | '.join(cells)} | {len(same)} |"


def main(
    experiment: Experiment, description: str | None, arguments: Sequence[str] | None = None
) -> None:
    """Run, or print the table; arguments are the command line's if not given."""
    runs.main(
        description,
        lambda: list(experiment.methods),
        lambda name, seed: run(experiment, name, seed),
        lambda finished: table(experiment, finished),
        lambda found: {key: value for key, value in found.items() if key != "sequences"},
        arguments,
    )
