"""The training loop, written once: collect, differentiate, step, measure, keep.

Every random number is a function of the seed and of what it is for (update, prompt, sample), so a
run depends neither on the number of processes nor on where it was interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffreward.adaptive import adapting, adaptive_metrics, adaptive_tensors, load_adaptive
from diffreward.algorithm import Algorithm, Batch
from diffreward.checks import check_first_step, check_scores
from diffreward.diffusion import Diffusion
from diffreward.evaluation import (
    Evaluation,
    as_json,
    evaluate,
    measure,
    sample,
    spread,
    write_samples,
)
from diffreward.learner import Learner
from diffreward.model_card import write_model_card
from diffreward.policy import Adaptation, LoRA, Policy
from diffreward.preferences import Encoded, Preferences, encode
from diffreward.processes import Processes
from diffreward.prompts import prompts_of_update, read_prompts
from diffreward.record import Measure
from diffreward.report import write_report
from diffreward.reward import RewardFunction, name_of
from diffreward.run_folder import RunFolder
from diffreward.samples import Samples, concatenate
from diffreward.settings import Training
from diffreward.stopping import Stopped, StopSignal


@dataclass(frozen=True)
class Run:
    """What a finished run leaves.

    Args:
        folder: report, metrics, samples, checkpoints and weights.
        before: measures before the first update.
        after: measures after the last one.
        policy: the fine-tuned model; `policy.diffusion` samples from it.
    """

    folder: Path
    before: Mapping[str, Measure]
    after: Mapping[str, Measure]
    policy: Policy


def train(
    diffusion: Diffusion,
    algorithm: Algorithm[Any],
    reward: RewardFunction,
    prompts: str | Sequence[str] | None = None,
    evaluation: Evaluation | None = None,
    adaptation: Adaptation | None = None,
    training: Training | None = None,
    data: Preferences | None = None,
    description: str | None = None,
) -> Run:
    """Fine-tune a diffusion model towards a reward.

    Args:
        diffusion: the model; its network is changed in place.
        algorithm: how it learns.
        reward: what it learns.
        prompts: a text file with one per line, or a list; those of the data if there are data.
        evaluation: what is measured and when; 64 samples of the training prompts if not given.
        adaptation: what is trained; `LoRA` if not given.
        training: how much and where to.
        data: judged samples to learn from, instead of the model's own.
        description: text that tells this run from others; kept as config.yaml.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: before anything is loaded, if the parts do
            not fit together or a file is missing.
        TrainingError: in the first update, before the weights change, if nothing can be learnt.
        Stopped: after a SIGTERM or Ctrl-C, with a checkpoint written.
    """
    training = training or Training()
    evaluation = evaluation or Evaluation()
    adaptation = adaptation or LoRA()
    seen = _prompts(prompts, data)
    judged = read_prompts(evaluation.prompts) if evaluation.prompts is not None else seen
    _check_parts(diffusion, algorithm, training, data)
    if description is None:
        description = _describe(diffusion, algorithm, reward, evaluation, adaptation, training)
        description += "" if data is None else f"{type(data).__name__} {data.fingerprint()}\n"
    plan = spread(judged, evaluation.samples)
    loop = _Loop(algorithm, reward, seen, data, evaluation, plan, training)
    return loop.run(diffusion, adaptation, description)


def _prompts(prompts: str | Sequence[str] | None, data: Preferences | None) -> list[str]:
    if (prompts is None) == (data is None):
        got = "neither" if data is None else "both"
        raise ValueError(f"training goes through prompts or through data, got {got}")
    if data is not None:
        return list(data.prompts())
    return read_prompts(prompts) if prompts is not None else []


def _check_parts(
    diffusion: Diffusion, algorithm: Algorithm[Any], training: Training, data: Preferences | None
) -> None:
    """ValueError if the parts of a run do not fit together."""
    name = type(algorithm).__name__
    if data is not None and not algorithm.takes_data:
        raise ValueError(
            f"{name} learns from the model's own paths and cannot learn from data; DiffusionDPO, "
            "DiffusionKTO, InversionDPO and the other methods on finished samples can"
        )
    if data is None and training.samples_per_prompt < algorithm.group_size:
        raise ValueError(
            f"samples_per_prompt is at least {algorithm.group_size} for {name}, got "
            f"{training.samples_per_prompt}: the samples of a prompt are compared with each other"
        )
    if algorithm.needs_density and diffusion.deterministic:
        raise ValueError(
            f"{name} needs the probability of each step, and this sampler is deterministic; use a "
            "stochastic one (eta > 0)"
        )


class _Loop:
    """One run, in one of its processes."""

    def __init__(
        self,
        algorithm: Algorithm[Any],
        reward: RewardFunction,
        prompts: Sequence[str],
        data: Preferences | None,
        evaluation: Evaluation,
        plan: Sequence[str],
        training: Training,
    ) -> None:
        self.algorithm, self.reward, self.prompts = algorithm, reward, prompts
        self.data = data
        self.encoded: Encoded | None = None
        self.evaluation, self.plan, self.training = evaluation, plan, training
        self.measures = {"reward": reward, **evaluation.rewards}
        output = training.output or f"runs/{time.strftime('%Y%m%d-%H%M%S')}"
        self.processes = Processes(replace(training, output=output))
        self.processes.require("prompts_per_update", training.prompts_per_update)
        self.processes.require("evaluation.samples", evaluation.samples)
        self.accelerator = self.processes.accelerator
        # The main process's: clocks differ.
        path = Path(self.processes.from_main(output))
        self.folder = RunFolder(path, training.checkpoints_kept)

    def run(self, diffusion: Diffusion, adaptation: Adaptation, description: str) -> Run:
        done = None
        if self.accelerator.is_main_process:
            done = self.folder.open(description, self.training.resume is not None)
        done = self.processes.from_main(done)
        self._prepare(diffusion, adaptation)
        if done is None:
            self._evaluate(0)
            self._save(0)
        else:
            tensors, state = self.folder.load(done)
            self.learner.load(tensors, state)
            load_adaptive(self.reward, tensors)
        with StopSignal() as signal:
            self._updates(done or 0, signal)
        return self._finish()

    def _prepare(self, diffusion: Diffusion, adaptation: Adaptation) -> None:
        """Load the model, encode all prompts, make the optimiser."""
        diffusion.to(self.accelerator.device)
        diffusion.encode([*dict.fromkeys([*self.prompts, *self.plan])])
        diffusion.release_encoders()
        if self.data is not None:
            self.encoded = self._encoded(self.data, diffusion)
            self.prompts = self.encoded.prompts
        self.policy = adaptation.attach(diffusion, self.training.rows, self.training.seed)
        self.learner = Learner(self.policy, self.training, self.accelerator)
        if self.training.trackers:
            self.accelerator.init_trackers("diffreward")

    def _encoded(self, data: Preferences, diffusion: Diffusion) -> Encoded:
        """The data as clean states: by the main process, for all to read."""
        cache, rows = self.folder.path / "encoded", self.training.rows
        if self.accelerator.is_main_process:
            encoded = encode(data, diffusion, cache, rows)
            self.accelerator.wait_for_everyone()
        else:
            self.accelerator.wait_for_everyone()
            encoded = encode(data, diffusion, cache, rows)
        return encoded

    def _updates(self, done: int, signal: StopSignal) -> None:
        last = self.training.updates
        bar = tqdm(
            range(done + 1, last + 1),
            desc=type(self.algorithm).__name__,
            initial=done,
            total=last,
            disable=not self.accelerator.is_main_process,
        )
        for update in bar:
            with adapting(self.reward):
                metrics = self._update(update)
            metrics |= adaptive_metrics(self.reward)
            self._log({"kind": "update", "update": update, **metrics})
            bar.set_postfix(reward=f"{metrics['reward']:.4g}", loss=f"{metrics['loss']:.3g}")
            penalty, every = self.algorithm.penalty, self.evaluation.every
            finished = update == last or penalty.exhausted(metrics.get("penalty", 0.0))
            if finished or (every > 0 and update % every == 0):
                self._evaluate(update)
            stopped = max(self.processes.gathered([signal.received]))
            if stopped or finished or update % self.training.checkpoint_every == 0:
                self._save(update)
            if stopped:
                bar.close()
                raise Stopped(stopped)
            if finished:
                break

    def _update(self, update: int) -> dict[str, float]:
        """One round of collecting and learning; its metrics."""
        start, rate = time.monotonic(), self.training.rate(update)
        batch, share = self._batch(update)
        with self.accelerator.autocast():
            experience = self.algorithm.collect(self.policy, self.reward, batch)
        collected = time.monotonic()
        metrics: dict[str, float] = {}
        for inner_step in range(self.algorithm.inner_steps):
            losses = self.algorithm.losses(self.policy, experience, inner_step)
            metrics = self._combined(self.learner.accumulate(losses, share), share)
            metrics["grad_norm"] = self.learner.gradient_norm()
            # A method that scores its samples while it differentiates has done so by now.
            scores = torch.tensor(self.processes.gathered(experience.scores.tolist()))
            if update == 1 and inner_step == 0:
                if self.data is None:
                    check_scores(scores)
                check_first_step(metrics)
            self.learner.step(rate)
        if self.algorithm.penalty.weight:
            self.algorithm.penalty.adapt(self.policy, metrics["penalty"])
        scored = scores[scores.isfinite()]
        return {
            "reward": float(scored.mean()),
            "reward_std": float(scored.std()) if len(scored) > 1 else math.nan,
            "samples": len(scores),
            "unscored": len(scores) - len(scored),
            **metrics,
            "learning_rate": rate,
            "seconds_collecting": collected - start,
            "seconds": time.monotonic() - start,
        }

    def _combined(self, metrics: dict[str, float], share: float) -> dict[str, float]:
        """The metrics over all processes: the largest of each error, the mean of the others."""
        parts = self.processes.gathered([(metrics, share)])
        return {
            name: max(part[name] for part, _ in parts)
            if name.endswith("_error")
            else sum(part[name] * weight for part, weight in parts) / len(parts)
            for name in metrics
        }

    def _batch(self, update: int) -> tuple[Batch, float]:
        """This process's prompts of an update, and their weight in the mean over processes."""
        n, seed = self.training.prompts_per_update, self.training.seed
        chosen = prompts_of_update(range(len(self.prompts)), update, n, seed)
        mine = self.processes.share(n)
        numbers = chosen[mine.start : mine.stop]
        batch = Batch(
            [self.prompts[i] for i in numbers],
            self.training.samples_per_prompt,
            seed,
            update,
            mine.start,
            None if self.encoded is None else self.encoded.select(numbers),
        )
        return batch, len(mine) * self.accelerator.num_processes / n

    def _evaluate(self, update: int) -> None:
        """Score the fixed samples, split over the processes, and write them down."""
        start, mine = time.monotonic(), self.processes.share(len(self.plan))
        prompts, rows = self.plan[mine.start : mine.stop], self.training.rows
        bar = tqdm(
            range(0, len(prompts), rows),
            desc="evaluation",
            leave=False,
            disable=not self.accelerator.is_main_process,
        )
        diffusion, seed = self.policy.diffusion, self.evaluation.seed
        with self.learner.averaged(), self.accelerator.autocast():
            parts = [
                sample(diffusion, prompts[i : i + rows], seed, mine.start + i, rows) for i in bar
            ]
        samples = concatenate(parts)
        scores = evaluate(samples, prompts, self.measures)
        shown = samples[: max(0, self.evaluation.shown - mine.start)].to("cpu")
        found: list[tuple[dict[str, Tensor], Samples]] = self.processes.gathered([(scores, shown)])
        if not self.accelerator.is_main_process:
            return
        everyone = {name: torch.cat([part[name] for part, _ in found]) for name in scores}
        pictures = concatenate([part for _, part in found])
        write_samples(self.folder.samples(update), pictures, self.plan, everyone)
        measures = as_json({name: measure(values) for name, values in everyone.items()})
        seconds = time.monotonic() - start
        self._log(
            {"kind": "evaluation", "update": update, "measures": measures, "seconds": seconds}
        )
        write_report(self.folder.path)

    def _save(self, update: int) -> None:
        if self.accelerator.is_main_process:
            tensors = self.learner.tensors() | adaptive_tensors(self.reward)
            self.folder.save(update, tensors, self.learner.state())

    def _finish(self) -> Run:
        """Write the weights, their card and the report."""
        self.accelerator.wait_for_everyone()
        self.learner.adopt_average()
        before, after = self.folder.measures()
        if self.accelerator.is_main_process:
            weights = self.folder.path / "weights"
            self.policy.save(weights)
            write_model_card(
                weights,
                algorithm=type(self.algorithm).__name__,
                reward=name_of(self.reward),
                before=before,
                after=after,
                settings=self.policy.diffusion.settings,
            )
            write_report(self.folder.path)
        self.accelerator.end_training()
        return Run(self.folder.path, _measures(before), _measures(after), self.policy)

    def _log(self, line: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.folder.log(line)
        if self.training.trackers:
            values = {k: v for k, v in line.items() if isinstance(v, int | float)}
            for name, one in line.get("measures", {}).items():
                values |= {f"{name}/{k}": v for k, v in one.items() if v is not None}
            self.accelerator.log(values, step=line["update"])


def _measures(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Measure]:
    return {name: Measure.of(one) for name, one in values.items()}


def _describe(
    diffusion: Diffusion,
    algorithm: Algorithm[Any],
    reward: RewardFunction,
    evaluation: Evaluation,
    adaptation: Adaptation,
    training: Training,
) -> str:
    """What makes a run what it is, a line each, for runs that were not started from a file."""
    kept = replace(training, updates=1, output=None, resume=None, trackers=(), checkpoint_every=1)
    measured = replace(evaluation, rewards={}), sorted(evaluation.rewards)
    model = type(diffusion).__name__, dict(diffusion.settings)
    parts = (model, algorithm, name_of(reward), adaptation, measured, kept)
    return "".join(f"{part}\n" for part in parts)
