"""The command `diffreward`: train, steer, evaluate, env."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser
from tqdm import tqdm

from diffreward.config import (
    ConfigError,
    add_model_and_reward,
    identity,
    instantiate,
    new_parser,
    parse,
    training_parser,
)

USAGE = """usage: diffreward COMMAND [options]

  train      fine-tune a model towards a reward, as a configuration file says
  steer      sample from a model under the pull of a reward, without training
  evaluate   sample from a model and measure
  env        versions and devices, for bug reports

`diffreward COMMAND --help` lists the options of a command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name; exits with 2 on a mistake of the user."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"train": train, "steer": steer, "evaluate": evaluate, "env": env}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    name, *rest = arguments
    if name not in commands:
        sys.exit(f"diffreward: there is no command {name!r}\n\n{USAGE}")
    from diffreward.checks import TrainingError
    from diffreward.reward import RewardError
    from diffreward.stopping import Stopped

    mistakes = (ConfigError, FileExistsError, FileNotFoundError, RewardError, TrainingError)
    try:
        commands[name](rest)
    except mistakes as error:
        print(f"diffreward {name}: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"diffreward {name}: {stopped}; go on with --resume latest", file=sys.stderr)
        sys.exit(128 + stopped.signal_number)


def train(arguments: Sequence[str]) -> None:
    """Fine-tune, then print the measures before and after."""
    parser = training_parser()
    config = parse(parser, arguments)
    made = instantiate(parser, config)
    from diffreward import training
    from diffreward.report import summary
    from diffreward.settings import Training

    try:
        run = training.train(
            made.diffusion,
            made.algorithm,
            made.reward,
            made.prompts,
            made.evaluation,
            made.adaptation,
            Training(**{field.name: made[field.name] for field in fields(Training)}),
            identity(parser, config),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print(summary(run.folder))
    print(f"\nreport: {run.folder / 'report.html'}\nweights: {run.folder / 'weights'}")


def steer(arguments: Sequence[str]) -> None:
    """Sample once per prompt under the pull of the reward; keep samples and scores."""
    import torch

    from diffreward.evaluation import measure, write_samples
    from diffreward.prompts import read_prompts
    from diffreward.steering import SteeringMethod, steer_diffusion

    parser = new_parser("Sample from a model under the pull of a reward, without training.")
    add_model_and_reward(parser)
    parser.add_subclass_arguments(SteeringMethod, "method", required=True, help="how it is steered")
    _add_sampling(parser)
    made = instantiate(parser, parse(parser, arguments))
    prompts = read_prompts(made.prompts)
    made.diffusion.to("cuda" if torch.cuda.is_available() else "cpu")
    bar = tqdm(total=made.diffusion.num_steps, desc=type(made.method).__name__)

    def progress(done: int, total: int) -> None:
        bar.update(done - bar.n)

    steered = steer_diffusion(
        made.diffusion, made.reward, prompts, made.method, made.seed, made.rows, progress
    )
    bar.close()
    best = steered.rewards.gather(1, steered.chosen[:, None]).squeeze(1)
    write_samples(Path(made.output), steered.samples, prompts, {"reward": best})
    chosen, every = measure(best), measure(steered.rewards.flatten())
    print(
        f"reward of the chosen {chosen.mean:.4f} ± {chosen.error:.4f}, of all particles "
        f"{every.mean:.4f}; {steered.network_rows} network rows, {steered.scored_rows} samples "
        f"scored; see {made.output}"
    )


def evaluate(arguments: Sequence[str]) -> None:
    """Sample once per planned prompt, print the measures, keep samples and scores."""
    import torch

    from diffreward.evaluation import evaluate as score_all
    from diffreward.evaluation import measure, sample, spread, write_samples
    from diffreward.prompts import read_prompts

    parser = new_parser("Sample from a model on fixed seeds and measure.")
    add_model_and_reward(parser)
    parser.add_argument("--samples", type=int, default=256, help="how many are drawn")
    _add_sampling(parser)
    made = instantiate(parser, parse(parser, arguments))
    plan = spread(read_prompts(made.prompts), made.samples)
    made.diffusion.to("cuda" if torch.cuda.is_available() else "cpu")
    samples = sample(made.diffusion, plan, made.seed, rows=made.rows)
    scores = score_all(samples, plan, {"reward": made.reward})
    write_samples(Path(made.output), samples, plan, scores)
    result = measure(scores["reward"])
    print(f"{result.mean:.4f} ± {result.error:.4f} over {result.n} samples; see {made.output}")


def _add_sampling(parser: ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--rows", type=int, default=64, help="most samples at a time")
    parser.add_argument("--output", type=str, required=True, help="folder of samples and scores")


def env(arguments: Sequence[str]) -> None:
    """Print what a bug report needs."""
    import torch

    for package in ("diffreward", "torch", "diffusers", "transformers", "accelerate", "peft"):
        print(f"{package:14}{importlib.metadata.version(package)}")
    print(f"{'python':14}{platform.python_version()} on {platform.platform()}")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"{'devices':14}{', '.join(devices) or 'CPU only'}, {torch.get_num_threads()} threads")
