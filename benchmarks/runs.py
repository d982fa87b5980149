"""What experiments share: trained models, counted costs, a file per run, and the table of a folder.

python benchmarks/NAME.py run all --seeds 0 1 2 --output FOLDER      one file per run
python benchmarks/NAME.py table FOLDER > benchmarks/NAME.md

A run that is there already is not repeated, so several processes can share a folder.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from diffreward.algorithm import Algorithm, Batch
from diffreward.diffusion import Diffusion
from diffreward.learner import Learner
from diffreward.policy import Adaptation, Policy
from diffreward.processes import Processes
from diffreward.reward import RewardFunction
from diffreward.settings import Training

Run = dict[str, Any]
"""What is known of one run."""


class Rows:
    """Counts the rows that go through a network."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.count = 0
        network.register_forward_pre_hook(self._add)

    def _add(self, network: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.count += len(inputs[0])


def learn(
    algorithm: Algorithm[Any],
    policy: Policy,
    learner: Learner,
    reward: RewardFunction,
    batch: Batch,
    rate: float,
) -> None:
    """One update, as the training loop makes it."""
    experience = algorithm.collect(policy, reward, batch)
    for inner_step in range(algorithm.inner_steps):
        metrics = learner.accumulate(algorithm.losses(policy, experience, inner_step), 1.0)
        learner.gradient_norm()
        learner.step(rate)
    if algorithm.penalty.weight:
        algorithm.penalty.adapt(policy, metrics["penalty"])


def train(
    diffusion: Diffusion,
    adaptation: Adaptation,
    algorithm: Algorithm[Any],
    reward: RewardFunction,
    batches: Sequence[Batch],
    rate: float,
    rows: int,
) -> None:
    """Fine-tune a model, in place: an update for each batch, then the average of the weights."""
    training = Training(learning_rate=rate, ema_decay=0.9, rows=rows)
    policy = adaptation.attach(diffusion, training.rows, batches[0].seed)
    learner = Learner(policy, training, Processes(training).accelerator)
    for batch in batches:
        learn(algorithm, policy, learner, reward, batch, rate)
    learner.adopt_average()


def cell(values: Sequence[float], digits: int) -> str:
    """Mean over seeds and, of several, its standard error."""
    text = f"{fmean(values):.{digits}f}"
    return text + (f" ± {stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else "")


def main(
    description: str | None,
    names: Callable[[], Sequence[str]],
    run: Callable[[str, int], Run],
    table: Callable[[list[Run]], Iterator[str]],
    shown: Callable[[Run], object] = lambda found: found,
    arguments: Sequence[str] | None = None,
) -> None:
    """Run, or print the table.

    Args:
        description: of the command line.
        names: of all runs of a seed.
        run: makes the run of a name and a seed.
        table: lines of Markdown.
        shown: what is printed of a run.
        arguments: the command line's if not given.
    """
    parser = argparse.ArgumentParser(description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("names", nargs="+", help="rows of the table, or all")
    running.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    running.add_argument("--output", type=Path, required=True)
    commands.add_parser("table").add_argument("folder", type=Path)
    given = parser.parse_args(arguments)
    if given.command == "table":
        texts = [file.read_text() for file in sorted(given.folder.glob("*.json"))]
        # A run that goes on is still empty.
        print("\n".join(table([json.loads(text) for text in texts if text])))
        return
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    chosen = names() if given.names == ["all"] else given.names
    for seed in given.seeds:
        for name in chosen:
            file = given.output / f"{name}-{seed}.json".replace(" ", "-").replace("/", "-")
            if file.exists():
                continue
            file.touch()
            found = run(name, seed)
            file.write_text(json.dumps(found))
            print(name, seed, shown(found), flush=True)
