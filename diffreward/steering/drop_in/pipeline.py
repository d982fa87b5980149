"""Steering any pipeline of diffusers: the same call, the same output class, better samples."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from diffreward.random import randn, stream
from diffreward.reward import RewardFunction
from diffreward.steering.drop_in.arguments import Expanded, expand
from diffreward.steering.drop_in.budget import (
    Budget,
    put_back,
    seconds_in,
    within_rows,
    within_seconds,
)
from diffreward.steering.drop_in.decoding import Decode
from diffreward.steering.drop_in.media import pick
from diffreward.steering.drop_in.run import Judging, PipelineRun, Value
from diffreward.steering.methods import Cost, FKSteering, SteeringMethod
from diffreward.steering.result import Steered


def steer(
    pipe: DiffusionPipeline,
    reward: RewardFunction,
    method: SteeringMethod | None = None,
    *,
    eta: float = 1.0,
    value: Value | None = None,
    decoder: Decode | None = None,
    preview_vae: nn.Module | None = None,
    preview_shrink: int = 1,
    rows: int = 64,
    budget: Budget | None = None,
    seed: int | None = None,
) -> SteeredPipeline:
    """Wrap a pipeline so that its samples follow a reward.

    Args:
        pipe: any diffusers pipeline with a scheduler; it is not changed, nor is its scheduler.
        reward: higher is better; of samples and prompts (empty where the call has no prompt).
        method: how; `FKSteering()` if not given.
        eta: noise of steps where particles must part and the sampler is deterministic, from the
            first scored state on: 1 is a DDPM step (for flows, an SDE with g = 3 sigma^2), 0 keeps
            the sampler, whose copies of a particle then stay alike.
        value: judges states on the way in place of the reward of the decoded clean prediction.
        decoder: maps clean states to samples, in place of the pipeline's own last lines.
        preview_vae: decodes on the way, in place of the pipeline's own: a tiny autoencoder.
        preview_shrink: height and width of states are divided by this before decoding on the way.
        rows: particles at a time in the networks, the decoder and the reward; bounds the memory.
        budget: chooses the number of particles in place of the method's: denoiser rows per output
            (an integer), or seconds per call ("30s", after one particle alone has been timed).
        seed: of resampling; by default it follows from the call's generator.

    Raises:
        TypeError: if the pipeline has no scheduler of its own.
        ValueError: if the budget is neither rows nor seconds, or a number is out of its range.
    """
    if getattr(pipe, "scheduler", None) is None or not callable(pipe):
        raise TypeError(
            f"{type(pipe).__name__} has no component `scheduler`, at which it could be steered; "
            "give the part of it that denoises"
        )
    judging = Judging(reward, eta, value, decoder, preview_vae, preview_shrink, rows)
    seconds_in(budget)
    return SteeredPipeline(pipe, (method or FKSteering()).settings(), judging, budget, seed)


class SteeredPipeline:
    """A pipeline whose calls are steered; everything else is the pipeline's own."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        method: FKSteering,
        judging: Judging,
        budget: Budget | None,
        seed: int | None,
    ) -> None:
        self._pipe, self._method, self._judging = pipe, method, judging
        self._budget, self._seed = budget, seed
        self._last: Steered | None = None

    def __getattr__(self, name: str) -> Any:
        if name == "_pipe":  # A copy is asked for its methods before it has any attribute.
            raise AttributeError(name)
        return getattr(self._pipe, name)

    @property
    def last(self) -> Steered:
        """How the last call went.

        Raises:
            ValueError: before the first call.
        """
        if self._last is None:
            raise ValueError("nothing has been steered so far: call the pipeline first")
        return self._last

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline; takes its arguments, returns its output class.

        Each output that a plain call would give is the best of N particles, or drawn from them.

        Raises:
            FloatingPointError: if no particle of a prompt got a score.
            TypeError: if the reward does not take what the pipeline makes.
            torch.OutOfMemoryError: with what would need less.
            ValueError: if the pipeline cannot be steered; the message says why.
        """
        method, seconds = self._method, seconds_in(self._budget)
        if isinstance(self._budget, int):
            method = within_rows(method, self._budget, self._num_calls(self._bound(args, kwargs)))
        if seconds is None:
            return self._steered(method, args, kwargs)
        # One particle tells what one costs; what it made is the result if there is no time left.
        begun = time.perf_counter()
        with put_back(self._bound(args, kwargs).get("generator")):
            result = self._steered(replace(method, particles=1), args, kwargs)
        alone = time.perf_counter() - begun
        method = within_seconds(method, seconds - alone, alone)
        return result if method.particles == 1 else self._steered(method, args, kwargs)

    def _steered(self, method: FKSteering, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        begun = time.perf_counter()
        call = expand(self._pipe, args, kwargs, method.particles)
        seeds = self._seeds(call)
        costs = []
        for number in range(method.rounds):
            of_round = [stream(seed, "round", number).initial_seed() for seed in seeds]
            run = PipelineRun(self._pipe, method, self._judging, call, of_round)
            try:
                outputs, steered = run()
            except torch.OutOfMemoryError as error:
                raise torch.OutOfMemoryError(
                    f"{error}; to take less at a time, give steer(..., rows=) a number below "
                    f"{self._judging.rows}, preview_shrink=2, or a tiny autoencoder as preview_vae="
                ) from error
            costs.append(steered.cost)
            if number + 1 < method.rounds:
                near = self._near(run.start, run.noise_scale, steered, of_round)
                call = call.with_keywords(latents=near)
        network, scored = sum(c.network_rows for c in costs), sum(c.scored_rows for c in costs)
        cost = Cost(network, scored, time.perf_counter() - begun)
        self._last = replace(steered, cost=cost)
        first = torch.arange(len(steered.chosen)) * method.particles
        return pick(outputs, (first + steered.chosen).tolist(), len(run.start))

    def _bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments of a call by name, with their defaults."""
        bound = inspect.signature(type(self._pipe).__call__).bind_partial(None, *args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def _num_calls(self, arguments: Mapping[str, Any]) -> int:
        """Of the network per particle, as far as the arguments tell."""
        steps = arguments.get("num_inference_steps")
        if not isinstance(steps, int):
            raise ValueError(
                "a budget in rows needs num_inference_steps, to know what a particle costs: give "
                "it, or a budget in seconds"
            )
        order: int = getattr(self._pipe.scheduler, "order", 1)
        return steps * order - (order - 1)

    def _seeds(self, call: Expanded) -> Sequence[int]:
        if self._seed is None:
            return call.seeds
        return [stream(self._seed, g).initial_seed() for g in range(len(call.prompts))]

    def _near(
        self, start: Tensor, noise_scale: float, steered: Steered, seeds: Sequence[int]
    ) -> Tensor:
        """Noises for the next round: of each prompt's best particle, and N - 1 near it."""
        if "latents" not in inspect.signature(type(self._pipe).__call__).parameters:
            raise ValueError(f"{type(self._pipe).__name__} takes no latents: search needs them")
        n, s = steered.rewards.shape[1], self._method.spread
        origins = steered.cloud.origins().gather(1, steered.chosen[:, None]).squeeze(1)
        best = start[(torch.arange(len(origins)) * n + origins).to(start.device)]
        pivot = (best / noise_scale).repeat_interleave(n, 0)
        sources = [stream(seed, "near", i) for seed in seeds for i in range(n)]
        near = math.sqrt(1 - s**2) * pivot + s * randn(start.shape, sources, start.device)
        itself = (torch.arange(len(start)) % n == 0).to(start.device)
        return torch.where(itself.reshape(-1, *[1] * (start.ndim - 1)), pivot, near.to(pivot.dtype))
