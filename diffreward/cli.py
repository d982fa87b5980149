"""The command `diffreward`: train, steer, evaluate, pretrain, statistics, serve, env."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from diffreward.config import (
    METHODS,
    ConfigError,
    add_model_and_reward,
    add_reward_and_prompts,
    identity,
    instantiate,
    new_parser,
    parse,
    pretraining_parser,
    training_parser,
    with_method_class,
)

if TYPE_CHECKING:
    from diffreward.outcomes import Outcome

USAGE = """usage: diffreward COMMAND [options]

  train      fine-tune a model towards a reward, as a configuration file says
  steer      sample from a pipeline under the pull of a reward, without training
  evaluate   sample from a model and measure
  pretrain   train a masked diffusion model on DNA, RNA or protein sequences
  statistics write what rewards of sets compare with, from a folder of media
  serve      let a reward score for runs in other environments or on other machines
  env        versions and devices, for bug reports

`diffreward COMMAND --help` lists the options of a command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name; exits with 2 on a mistake of the user."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {
        "train": train,
        "steer": steer,
        "evaluate": evaluate,
        "pretrain": pretrain,
        "statistics": statistics,
        "serve": serve,
        "env": env,
    }
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
            made.data,
            identity(parser, config),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print(summary(run.folder))
    print(f"\nreport: {run.folder / 'report.html'}\nweights: {run.folder / 'weights'}")


def steer(arguments: Sequence[str]) -> None:
    """Steer a pipeline over all prompts; exits with 1 if one of them failed."""
    from diffreward.prompts import read_prompts
    from diffreward.steering import SteeringMethod
    from diffreward.steering_run import REPEATABLE, Steering, run

    parser = new_parser("Sample from a pipeline under the pull of a reward, without training.")
    parser.add_class_arguments(Steering)
    add_reward_and_prompts(parser)
    parser.add_subclass_arguments(
        SteeringMethod, "method", required=True, help=f"{', '.join(METHODS)}, or a class"
    )
    parser.add_argument(
        "--output", "--out", type=str, required=True, help="folder of the results, or to go on with"
    )
    config = parse(parser, with_method_class(arguments))
    # In whatever order they were given, it is the same call.
    config.call = dict(sorted(config.call.items()))
    made = instantiate(parser, config)
    try:
        outcomes = run(
            Steering(**{field.name: made[field.name] for field in fields(Steering)}),
            made.reward,
            made.method,
            read_prompts(made.prompts),
            Path(made.output),
            identity(parser, config, REPEATABLE),
        )
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    _conclude(outcomes, Path(made.output))


def _conclude(outcomes: Sequence[Outcome], output: Path) -> None:
    """Say what came out and where it is; exits with 1 if prompts failed."""
    from diffreward.outcomes import RESULTS, mean

    chosen = mean(outcome.reward for outcome in outcomes)
    every = mean(outcome.mean_reward for outcome in outcomes)
    network, scored, seconds = (
        sum(getattr(outcome, name) or 0 for outcome in outcomes)
        for name in ("network_rows", "scored_rows", "seconds")
    )
    print(
        f"reward of the chosen {chosen.text(4)}, of all particles {every.text(4)}; {network} "
        f"network rows, {scored} samples scored, {seconds:.1f} s\n\n"
        f"results: {output / RESULTS}\ngallery: {output / 'gallery.html'}"
    )
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    for outcome in failed:
        print(f"prompt {outcome.number}, {outcome.prompt!r}: {outcome.failure}", file=sys.stderr)
    if failed:
        print(f"diffreward steer: {len(failed)} of {len(outcomes)} prompts failed", file=sys.stderr)
        sys.exit(1)


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


def pretrain(arguments: Sequence[str]) -> None:
    """Train a pipeline of sequences from random weights, then print its bound."""
    import torch

    from diffreward.sequences import pretraining
    from diffreward.sequences.data import SequenceFiles
    from diffreward.sequences.pipeline import MaskedDiffusionPipeline
    from diffreward.sequences.scheduler import MaskedDiffusionScheduler
    from diffreward.sequences.settings import Pretraining

    parser = pretraining_parser()
    config = parse(parser, arguments)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        made = instantiate(parser, config)
    try:
        settings = Pretraining(**{field.name: made[field.name] for field in fields(Pretraining)})
        files = SequenceFiles(**{field.name: made[field.name] for field in fields(SequenceFiles)})
        corpus = files.read()
        print(corpus.text())
        scheduler = MaskedDiffusionScheduler(vocab_size=len(corpus.alphabet), noise=made.noise)
        pipeline = MaskedDiffusionPipeline(made.denoiser, scheduler, corpus.alphabet, corpus.length)
        found = pretraining.pretrain(pipeline, corpus, settings, identity(parser, config))
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    print(f"{found.text()}\n\npipeline: {found.folder}")


def statistics(arguments: Sequence[str]) -> None:
    """Embed a reference set and write its moments, or its rows."""
    from diffreward.embedding import Embedding
    from diffreward.exemplars import write_reference

    parser = new_parser("Write the statistics of a set of media, for rewards of sets.")
    parser.add_argument("--embedding", type=Embedding, required=True, help="in what it is seen")
    parser.add_argument("--media", type=str, required=True, help="a folder, or a file of texts")
    parser.add_argument("--rows", type=bool, default=False, help="all rows, not their moments")
    parser.add_argument("--output", type=str, required=True, help="a file, .safetensors")
    config = parse(parser, arguments)
    made = instantiate(parser, config)
    about = identity(parser, config, ("config", "media", "rows", "output"))
    try:
        found = write_reference(made.embedding, made.media, made.output, made.rows, about)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print(f"{found[0]} rows of {found[1]} features: {made.output}")


def serve(arguments: Sequence[str]) -> None:
    """Serve a reward over HTTP until the process is stopped."""
    from diffreward.reward import Reward
    from diffreward.serving import server

    parser = new_parser("Serve a reward over HTTP, for RemoteReward in a run somewhere else.")
    parser.add_argument("--reward", type=Reward, required=True, help="what is served")
    parser.add_class_arguments(server.Serving)
    config = parse(parser, arguments)
    made = instantiate(parser, config)
    names = [field.name for field in fields(server.Serving)]
    try:
        serving = server.Serving(**{name: made[name] for name in names})
        server.serve(made.reward, serving, identity(parser, config, ["config", *names]))
    except (ImportError, ValueError) as error:
        raise ConfigError(str(error)) from error


def env(arguments: Sequence[str]) -> None:
    """Print what a bug report needs."""
    import torch

    for package in ("diffreward", "torch", "diffusers", "transformers", "accelerate", "peft"):
        print(f"{package:14}{importlib.metadata.version(package)}")
    print(f"{'python':14}{platform.python_version()} on {platform.platform()}")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"{'devices':14}{', '.join(devices) or 'CPU only'}, {torch.get_num_threads()} threads")
