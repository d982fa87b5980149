"""What a fine-tuning method is: a way to collect experience, and a loss on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Generator, Tensor

from diffreward.diffusion import Trajectory, decode, rollout
from diffreward.policy import Policy
from diffreward.random import stream
from diffreward.replay import Losses, reference_log_probs
from diffreward.reward import RewardFunction, score


@dataclass(frozen=True)
class Batch:
    """What one update is asked for: some prompts, several samples of each, and their randomness.

    Args:
        prompts: P prompts.
        samples_per_prompt: G.
        seed: of the run.
        update: which update of the run this is.
        first: position of the first of these prompts among all of the update's. It makes every
            prompt's random numbers its own, whatever the number of processes.
    """

    prompts: Sequence[str]
    samples_per_prompt: int
    seed: int
    update: int = 0
    first: int = 0

    @property
    def groups(self) -> Tensor:
        """The prompt that each of the P * G samples belongs to, (B,) int64."""
        return torch.arange(len(self.prompts)).repeat_interleave(self.samples_per_prompt)

    def repeated(self) -> list[str]:
        """The prompt of each of the P * G samples."""
        return [self.prompts[i] for i in self.groups.tolist()]

    def streams(self, purpose: str, shared: bool = False) -> list[Generator]:
        """One generator per sample; with `shared`, samples of a prompt draw the same numbers."""
        return [
            stream(self.seed, purpose, self.update, self.first + i, 0 if shared else j)
            for i in range(len(self.prompts))
            for j in range(self.samples_per_prompt)
        ]


@dataclass(frozen=True)
class Experience:
    """Scored paths of the policy.

    Args:
        path: B of them.
        scores: rewards, (B,), NaN = no score.
        groups: the prompt of each, (B,) int64.
    """

    path: Trajectory
    scores: Tensor
    groups: Tensor


@dataclass(frozen=True)
class ReferencedExperience(Experience):
    """Scored paths, and what the reference thinks of them.

    Args:
        reference: log-probabilities of the path's steps under the reference, (B, S), nats.
    """

    reference: Tensor


ExperienceT = TypeVar("ExperienceT", bound=Experience)


class Algorithm(ABC, Generic[ExperienceT]):
    """One method, one file.

    Per round, the training loop calls `collect` once, then `inner_steps` times `losses` and the
    optimiser. Losses are means over prompts, so that processes with different numbers of prompts
    can be averaged.

    Args:
        inner_steps: optimiser steps per collected experience.
    """

    inner_steps: int = 1
    needs_density: ClassVar[bool] = True
    """Whether steps must have a density; False for methods that also train on ODE samples."""

    @abstractmethod
    def collect(self, policy: Policy, reward: RewardFunction, batch: Batch) -> ExperienceT:
        """Gather what one round needs, without gradient."""

    @abstractmethod
    def losses(self, policy: Policy, experience: ExperienceT, inner_step: int) -> Losses:
        """Yield scalars whose gradients sum to that of the loss; return metrics.

        The loop backpropagates each before it asks for the next, so that one micro-batch is in
        memory at a time.

        Args:
            policy: to be trained.
            experience: what `collect` returned.
            inner_step: optimiser steps since then; at 0 the policy is still the one that collected.
        """


def scored_rollout(
    policy: Policy,
    reward: RewardFunction,
    batch: Batch,
    share_start: bool,
    step_fraction: float,
) -> Experience:
    """Sample G paths per prompt from the policy and score where they end.

    Args:
        policy: to sample from.
        reward: of the decoded samples.
        batch: prompts and random numbers.
        share_start: whether the samples of a prompt start from the same noise x_0.
        step_fraction: share of the steps, drawn at random, that the paths offer for replay.
    """
    diffusion, prompts = policy.diffusion, batch.repeated()
    path = rollout(
        diffusion,
        diffusion.encode(prompts),
        prior=batch.streams("start", shared=share_start),
        noise=batch.streams("steps"),
        rows=policy.rows,
    )
    with torch.no_grad():
        scores = score(reward, decode(diffusion, path.clean, policy.rows), prompts)
    device = path.log_probs.device
    columns = _random_columns(len(path.steps), step_fraction, batch)
    return Experience(path.at(columns), scores.to(device), batch.groups.to(device))


def referenced_rollout(
    policy: Policy,
    reward: RewardFunction,
    batch: Batch,
    share_start: bool,
    step_fraction: float,
) -> ReferencedExperience:
    """A `scored_rollout`, with the log-probabilities of its steps under the reference."""
    experience = scored_rollout(policy, reward, batch, share_start, step_fraction)
    reference = reference_log_probs(policy, experience.path)
    return ReferencedExperience(experience.path, experience.scores, experience.groups, reference)


def _random_columns(total: int, fraction: float, batch: Batch) -> Tensor:
    """At least one of the columns 0 .. total - 1, ascending."""
    # Drawn for the run's update, not for a process: every process trains on the same steps.
    generator = stream(batch.seed, "train steps", batch.update)
    chosen = torch.randperm(total, generator=generator)[: max(1, round(fraction * total))]
    return chosen.sort().values
