"""From a configuration file and a command line to objects, by jsonargparse.

The constructors are the schema: their signatures say what may be set, their docstrings what it
means. An object is named by its import path, or by its class name where the class is ours, with its
arguments beside it; a plain function as a reward by ``file.py:name`` or ``package.module:name``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader, set_loader
from yaml import YAMLError

import diffreward.algorithms
import diffreward.embeddings
import diffreward.pipelines
import diffreward.rewards
from diffreward.algorithm import Algorithm
from diffreward.diffusion import Diffusion
from diffreward.embedding import Embedding
from diffreward.evaluation import Evaluation
from diffreward.policy import Adaptation
from diffreward.preferences import Preferences
from diffreward.reward import Reward
from diffreward.settings import Training
from diffreward.steering.methods import SteeringMethod

FUNCTION = re.compile(r"[\w./~-]+\.py:\w+|[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""How a plain function is written; a Windows drive or a URL does not match."""

RESUMABLE = ("config", "updates", "output", "resume", "trackers", "checkpoint_every")
"""Settings that may change when a run is resumed: they do not change what an update computes."""

METHODS = {
    "fk": "FKSteering",
    "best-of-n": "BestOfN",
    "svdd": "SVDD",
    "das": "DAS",
    "guidance": "Guidance",
    "beam": "BeamSearch",
    "noise-search": "NoiseSearch",
    "path-search": "PathSearch",
}
"""How steering methods are called on a command line, where their classes' names do as well."""


DENOISERS = ("ConvDenoiser", "TransformerDenoiser")
"""The networks that can be trained on sequences alone."""


class ConfigError(ValueError):
    """A configuration that cannot be turned into objects; the message says where and why."""


def training_parser() -> ArgumentParser:
    """The parser of `diffreward train`: one option for everything that can be set."""
    parser = new_parser("Fine-tune a diffusion model towards a reward.")
    parser.add_class_arguments(Training)
    add_model_and_reward(parser, prompts_required=False)
    parser.add_subclass_arguments(Algorithm, "algorithm", required=True, help="how it learns")
    parser.add_subclass_arguments(
        Preferences, "data", required=False, help="judged samples to learn from, not its own"
    )
    parser.add_subclass_arguments(Adaptation, "adaptation", required=True, help="what is trained")
    parser.set_defaults({"adaptation": {"class_path": "diffreward.policy.LoRA"}})
    parser.add_class_arguments(Evaluation, "evaluation")
    return parser


def pretraining_parser() -> ArgumentParser:
    """The parser of `diffreward pretrain`; one seed is that of the split and of the training."""
    from diffusers import ModelMixin

    import diffreward.sequences.denoisers  # noqa: F401 - by its import a class is known by name
    from diffreward.sequences.data import SequenceFiles
    from diffreward.sequences.settings import Pretraining

    parser = new_parser("Train a masked diffusion model on sequences, from random weights.")
    parser.add_class_arguments(SequenceFiles, skip={"seed"})
    parser.add_class_arguments(Pretraining)
    parser.add_subclass_arguments(
        ModelMixin, "denoiser", required=True, help=f"{', '.join(DENOISERS)}, or a class"
    )
    parser.set_defaults({"denoiser": {"class_path": "ConvDenoiser"}})
    parser.add_argument(
        "--noise",
        type=Literal["log_linear", "cosine"],
        default="log_linear",
        help="how the share of masked symbols grows; the bound does not depend on it",
    )
    parser.link_arguments("alphabet", "denoiser.init_args.vocab_size", compute_fn=len)
    return parser


def add_model_and_reward(parser: ArgumentParser, prompts_required: bool = True) -> None:
    """Add the options that every command with a model shares."""
    parser.add_subclass_arguments(Diffusion, "diffusion", required=True, help="the model")
    add_reward_and_prompts(parser, prompts_required)


def add_reward_and_prompts(parser: ArgumentParser, prompts_required: bool = True) -> None:
    """Add the options that every command with a reward shares."""
    parser.add_argument("--reward", type=Reward, required=True, help="what counts")
    kind = str | list[str] if prompts_required else str | list[str] | None
    parser.add_argument("--prompts", type=kind, required=prompts_required, help="a file, or a list")


def new_parser(description: str) -> ArgumentParser:
    """A parser that knows our classes by their bare names, and reads configuration files."""
    for package in (
        diffreward.algorithms,
        diffreward.embeddings,
        diffreward.pipelines,
        diffreward.rewards,
    ):
        _import_modules(package)
    for entry in entry_points(group="diffreward.rewards"):
        entry.load()
    set_loader("diffreward", _load, exceptions=(YAMLError,))
    parser = ArgumentParser(description=description, parser_mode="diffreward", exit_on_error=False)
    parser.add_argument("--config", action="config", help="a YAML file; later ones add to earlier")
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse and check a command line.

    Raises:
        ConfigError: naming what is wrong and, for a misspelt name, the nearest right ones.
    """
    try:
        config: Namespace = parser.parse_args(list(arguments))
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_explain(str(error), parser)) from error
    return config


def instantiate(parser: ArgumentParser, config: Namespace) -> Namespace:
    """Make the objects that a configuration describes.

    Raises:
        ConfigError: with what their constructors say.
    """
    try:
        made: Namespace = parser.instantiate(config)
    except (TypeError, ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    return made


def with_method_class(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command line, with the class of the method that ``--method`` names."""
    found = list(arguments)
    for i, argument in enumerate(found):
        option, equals, name = argument.partition("=")
        if option == "--method" and equals:
            found[i] = f"{option}={METHODS.get(name, name)}"
        elif i > 0 and found[i - 1] in ("--method", "--method.help"):
            found[i] = METHODS.get(argument, argument)
    return found


def identity(parser: ArgumentParser, config: Namespace, without: Sequence[str] = RESUMABLE) -> str:
    """The part of a configuration that makes a run what it is, as YAML."""
    kept = config.clone()
    for name in without:
        kept.pop(name, None)
    return str(parser.dump(kept, skip_validation=True))


def _import_modules(package: ModuleType) -> None:
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)


def _load(text: str) -> Any:
    return _with_functions(get_loader("yaml")(text))


def _with_functions(node: Any) -> Any:
    """The same data, with every ``source:name`` spelt out as a `diffreward.reward.Function`."""
    if isinstance(node, dict):
        return {k: v if k == "path" else _with_functions(v) for k, v in node.items()}
    if isinstance(node, list):
        return [_with_functions(value) for value in node]
    if isinstance(node, str) and FUNCTION.fullmatch(node):
        return {"class_path": "diffreward.reward.Function", "init_args": {"path": node}}
    return node


def _explain(message: str, parser: ArgumentParser) -> str:
    """The parser's message, with the names that are nearest to the one it does not know."""
    unknown = re.findall(
        r"unrecognized arguments: --?([\w.]+)|[Oo]ption '([\w.]+)' is not accepted"
        r"|does not accept option '([\w.]+)'|import path string: ([\w.-]+)"
        r"|Key '([\w.]+)' is not expected",
        message,
    )
    names = sorted(set(_names(parser)))
    hints = []
    for wrong in dict.fromkeys("".join(groups) for groups in unknown):
        near = difflib.get_close_matches(wrong, names, n=3) or difflib.get_close_matches(
            wrong.split(".")[-1], names, n=3
        )
        hints.append(f"unknown name {wrong!r}" + (f"; did you mean {near}?" if near else ""))
    return "\n".join([*hints, message])


def _names(parser: ArgumentParser) -> Iterator[str]:
    """Everything that may be written in a configuration: options, arguments and classes."""
    for action in parser._actions:
        yield action.dest
        yield action.dest.split(".")[-1]
    yield from METHODS
    yield from DENOISERS
    bases: list[type] = [Algorithm, Adaptation, Diffusion, Embedding, Preferences, Reward]
    bases += [SteeringMethod]
    while bases:
        cls = bases.pop()
        yield cls.__name__
        yield from inspect.signature(cls).parameters
        bases += cls.__subclasses__()
