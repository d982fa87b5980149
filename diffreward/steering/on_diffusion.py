"""Steering a diffusion towards a reward: the function that runs every method on a `Diffusion`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from diffreward.diffusion import Diffusion
from diffreward.random import stream
from diffreward.reward import RewardFunction
from diffreward.steering.methods import Cost, SteeringMethod
from diffreward.steering.result import Steered, choose
from diffreward.steering.smc import smc
from diffreward.steering.steered import StateValue, SteeredDiffusion


def steer_diffusion(
    diffusion: Diffusion,
    reward: RewardFunction,
    prompts: Sequence[str],
    method: SteeringMethod,
    seed: int = 0,
    rows: int = 64,
    progress: Callable[[int, int], None] | None = None,
    value: StateValue | None = None,
) -> Steered:
    """Sample from a diffusion, steered towards a reward.

    The numbers of a particle depend on the seed, the number of its prompt in the list and its own
    number: neither `rows` nor later prompts change the result (up to rounding in the network).

    Args:
        diffusion: the model; its weights stay as they are.
        reward: higher is better.
        prompts: G of them.
        method: one that neither returns to earlier states nor runs several rounds.
        seed: of all random numbers.
        rows: particles that go through the network at a time; bounds the memory.
        progress: called with the steps done and K after each step.
        value: judges unfinished particles in place of the reward of their clean predictions.

    Raises:
        FloatingPointError: if no particle of a prompt got a score.
        ValueError: if there are no prompts, or the method needs a pipeline.
    """
    if not prompts:
        raise ValueError("there is nothing to steer without prompts")
    settings, systems, start = method.settings(), range(len(prompts)), time.perf_counter()
    noise = [stream(seed, "steer", g, n) for g in systems for n in range(settings.particles)]
    model = SteeredDiffusion(diffusion, reward, prompts, settings, noise, rows, value)
    particles = settings.particle_filter(
        len(prompts), [stream(seed, "resample", g) for g in systems]
    )
    with diffusion.remembering() as spared:
        cloud = smc(model, particles, progress)
    finished, rewards = cloud.x.samples, cloud.x.rewards.reshape(cloud.log_weights.shape)
    if finished is None:
        raise ValueError("only finished particles are a result")
    chosen = choose(settings, cloud, rewards, [stream(seed, "select", g) for g in systems])
    return Steered(
        tuple(prompts),
        finished[torch.arange(len(prompts)) * settings.particles + chosen],
        chosen,
        finished,
        rewards,
        tuple(model.history),
        cloud,
        model.failures,
        Cost(model.network_rows - spared.rows, model.scored_rows, time.perf_counter() - start),
        finished,
    )
