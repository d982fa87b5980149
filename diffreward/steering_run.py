"""Steering a pipeline over many prompts, into a folder that is never lost: `diffreward steer`.

Each prompt has a seed of its own, so that what it becomes depends neither on its neighbours nor on
how often the run was stopped. Its line of ``results.jsonl`` is written after the sample.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from torch import Generator
from tqdm import tqdm

from diffreward.loading import check_source, load_pipeline
from diffreward.outcomes import Outcome, append, progress, read_outcomes
from diffreward.random import stream
from diffreward.reward import RewardFunction
from diffreward.run_folder import RunFolder
from diffreward.steering.drop_in import SteeredPipeline, steer
from diffreward.steering.drop_in.arguments import COPIES
from diffreward.steering.methods import SteeringMethod
from diffreward.steering.result import Steered

REPEATABLE = ("config", "output", "prompts", "batch", "rows", "device")
"""Options that may change when a run goes on: they change no sample by more than rounding, and
prompts are compared one by one."""

ASKED: Mapping[str, Callable[[list[str]], Any]] = {
    "prompt": list,
    "class_labels": lambda prompts: [int(prompt) for prompt in prompts],
    "batch_size": len,
}
"""What lines of the prompts are given as: the first of these arguments that a pipeline takes."""


@dataclass(frozen=True)
class Steering:
    """A pipeline, and how samples are drawn from it.

    Args:
        pipeline: any pipeline of diffusers: a hub id, or a folder.
        call: further arguments of the pipeline's own call, such as num_inference_steps.
        budget: chooses the number of particles in place of the method's: denoiser rows per prompt,
            or seconds per call such as "30s".
        eta: noise of steps where particles must part and the sampler is deterministic: 1 is that of
            DDPM, 0 keeps the sampler.
        seed: of the samples; each prompt's own seed follows from it and from the prompt's number.
        batch: prompts per call of the pipeline; the samples stay the same.
        rows: most particles at a time in networks, decoder and reward; lower it when memory runs
            out, the samples stay the same.
        dtype: of the weights.
        device: as torch names it; a GPU if there is one.
    """

    pipeline: str
    call: Mapping[str, Any] = field(default_factory=dict)
    budget: int | str | None = None
    eta: float = 1.0
    seed: int = 0
    batch: int = 1
    rows: int = 64
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or self.rows < 1:
            raise ValueError(f"got batch {self.batch} and rows {self.rows}; both are at least 1")
        check_source(self.pipeline, "model_index.json")

    def load(self) -> DiffusionPipeline:
        """The pipeline on its device; its progress bar makes room for one over the prompts."""
        pipe: DiffusionPipeline = load_pipeline(self.pipeline, dtype=getattr(torch, self.dtype))
        pipe.set_progress_bar_config(position=1, leave=False, disable=None)
        return pipe.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def run(
    settings: Steering,
    reward: RewardFunction,
    method: SteeringMethod,
    prompts: Sequence[str],
    output: Path,
    description: str,
) -> list[Outcome]:
    """Steer each prompt that the folder has no line of, and return the outcomes of all.

    The folder gets a sample per prompt, ``results.jsonl`` and a ``gallery.html`` of the last call.

    Args:
        settings: the pipeline and how it is called.
        reward: higher is better.
        method: of steering.
        prompts: one sample is drawn for each.
        output: the folder; created, or gone on with.
        description: what makes the run what it is; kept in ``config.yaml``.

    Raises:
        FileExistsError: if the folder holds something that is no run.
        ValueError: if the pipeline's call does not take the arguments, the folder holds another
            run, or the pipeline cannot be steered.
    """
    pipe = settings.load()
    asked = asked_by(pipe, settings.call)
    RunFolder(output, checkpoints_kept=0).open(description, resume=True)
    outcomes = read_outcomes(output, prompts)
    steered = steer(
        pipe, reward, method, eta=settings.eta, rows=settings.rows, budget=settings.budget
    )
    prompter = _Prompter(steered, asked, settings, prompts, output)
    with tqdm(total=len(prompts), initial=len(outcomes), desc="prompts", disable=None) as bar:
        for first in range(len(outcomes), len(prompts), settings.batch):
            new = prompter.outcomes(range(first, min(first + settings.batch, len(prompts))))
            append(output, new)
            outcomes += new
            bar.set_postfix_str(progress(outcomes), refresh=False)
            bar.update(len(new))
    if prompter.last is not None:
        prompter.last.write_html(output / "gallery.html")
    return outcomes


def asked_by(pipe: DiffusionPipeline, call: Mapping[str, Any]) -> str:
    """The argument that prompts are given as, if the pipeline can be called with these others.

    Raises:
        ValueError: naming the argument that is unknown, missing, or not free.
    """
    parameters = inspect.signature(type(pipe).__call__).parameters
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    taken = {n: p for n, p in parameters.items() if n != "self" and p.kind not in variable}
    name = type(pipe).__name__
    asked = next((argument for argument in ASKED if argument in taken), None)
    if asked is None or "generator" not in taken:
        raise ValueError(f"{name} takes {list(taken)}; needed are generator and one of {[*ASKED]}")
    for argument in call:
        if argument in (asked, "generator", *COPIES):
            raise ValueError(
                f"{argument} is not free: there is one sample per line of the prompts, from a "
                "generator of its own; repeat a line for more samples"
            )
        if argument not in taken:
            near = difflib.get_close_matches(argument, taken, n=3)
            hint = f"did you mean {near}?" if near else f"it takes {list(taken)}"
            raise ValueError(f"{name} takes no argument {argument!r}; {hint}")
    needed = {n for n, parameter in taken.items() if parameter.default is parameter.empty}
    missing = sorted(needed - {asked, *call})
    if missing:
        raise ValueError(f"{name} needs {missing}; give them as --call.{missing[0]} and so on")
    return asked


class _Prompter:
    """Calls a steered pipeline with prompts by their numbers, and writes the samples."""

    def __init__(
        self,
        steered: SteeredPipeline,
        asked: str,
        settings: Steering,
        prompts: Sequence[str],
        output: Path,
    ) -> None:
        self._steered, self._asked, self._settings = steered, asked, settings
        self._prompts, self._output = prompts, output
        self.last: Steered | None = None

    def outcomes(self, numbers: range) -> list[Outcome]:
        """Of some prompts; one that fails takes no other with it."""
        try:
            return self._together(numbers)
        except FloatingPointError as error:
            if len(numbers) > 1:
                return [outcome for n in numbers for outcome in self.outcomes(range(n, n + 1))]
            (n,) = numbers
            return [Outcome(n, self._prompts[n], self._seed(n), failure=str(error))]

    def _together(self, numbers: range) -> list[Outcome]:
        prompts, seeds = [self._prompts[n] for n in numbers], [self._seed(n) for n in numbers]
        call = {
            **self._settings.call,
            self._asked: ASKED[self._asked](prompts),
            "generator": [Generator().manual_seed(seed) for seed in seeds],
        }
        self._steered(**call)
        self.last = steered = self._steered.last
        files = steered.samples.write(self._output, first=numbers[0], digits=5)
        best = steered.rewards.gather(1, steered.chosen[:, None]).squeeze(1)
        means, ess = steered.rewards.nanmean(1), steered.ess.amin(0)
        evidence = steered.log_evidence
        cost = steered.cost
        return [
            Outcome(
                n,
                prompts[i],
                seeds[i],
                files[i],
                reward=float(best[i]),
                mean_reward=float(means[i]),
                ess=float(ess[i]),
                log_evidence=None if evidence is None else float(evidence[i]),
                network_rows=cost.network_rows // len(numbers),
                scored_rows=cost.scored_rows // len(numbers),
                seconds=cost.seconds / len(numbers),
            )
            for i, n in enumerate(numbers)
        ]

    def _seed(self, number: int) -> int:
        return stream(self._settings.seed, "steer", number).initial_seed()
