"""Steering a diffusion towards a reward: the one function that runs every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffreward.diffusion import Diffusion
from diffreward.random import stream
from diffreward.reward import RewardFunction
from diffreward.samples import Samples
from diffreward.steering.methods import SteeringMethod
from diffreward.steering.resampling import winner
from diffreward.steering.smc import Cloud, smc
from diffreward.steering.steered import Particles, SteeredDiffusion


@dataclass(frozen=True)
class Steered:
    """G prompts, N particles of each, and how they came about.

    Args:
        samples: the chosen sample of each prompt, G.
        chosen: its particle, (G,).
        particles: all finished samples, G * N, prompt by prompt.
        rewards: of them, (G, N) float64; NaN where the reward failed.
        cloud: weights, evidence, effective sample sizes and ancestors; see `Cloud`.
        failures: scores that were NaN, per prompt, on the way and at the end, (G,).
        network_rows: states that went through the network (guidance may double them inside).
        scored_rows: samples that were decoded and scored.
    """

    samples: Samples
    chosen: Tensor
    particles: Samples
    rewards: Tensor
    cloud: Cloud[Particles]
    failures: Tensor
    network_rows: int
    scored_rows: int


def steer_diffusion(
    diffusion: Diffusion,
    reward: RewardFunction,
    prompts: Sequence[str],
    method: SteeringMethod,
    seed: int = 0,
    rows: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Steered:
    """Sample from a diffusion, steered towards a reward.

    The numbers of a particle depend on the seed, the number of its prompt in the list and its own
    number: neither `rows` nor later prompts change the result (up to rounding in the network).

    Args:
        diffusion: the model; its weights stay as they are.
        reward: higher is better.
        prompts: G of them.
        method: `FKSteering` or `BestOfN`.
        seed: of all random numbers.
        rows: particles that go through the network at a time; bounds the memory.
        progress: called with the steps done and K after each step.

    Raises:
        FloatingPointError: if no particle of a prompt got a score.
        ValueError: if there are no prompts.
    """
    if not prompts:
        raise ValueError("there is nothing to steer without prompts")
    settings, systems = method.settings(), range(len(prompts))
    noise = [stream(seed, "steer", g, n) for g in systems for n in range(settings.particles)]
    model = SteeredDiffusion(diffusion, reward, prompts, settings, noise, rows)
    cloud = smc(
        model,
        len(prompts),
        settings.particles,
        settings.scheme(),
        settings.ess_threshold,
        [stream(seed, "resample", g) for g in systems],
        progress,
    )
    if settings.select == "best":
        chosen = _best(cloud)
    else:
        chosen = winner(cloud.weights, [stream(seed, "select", g) for g in systems])[:, 0]
    return _result(model, cloud, chosen)


def _best(cloud: Cloud[Particles]) -> Tensor:
    """The living particle with the highest reward in each system, (G,)."""
    rewards = cloud.x.rewards.reshape(cloud.log_weights.shape)
    return rewards.masked_fill(cloud.log_weights == -torch.inf, -torch.inf).argmax(1)


def _result(model: SteeredDiffusion, cloud: Cloud[Particles], chosen: Tensor) -> Steered:
    if cloud.x.samples is None:
        raise ValueError("only finished particles are a result")
    systems, particles = cloud.log_weights.shape
    return Steered(
        cloud.x.samples[torch.arange(systems) * particles + chosen],
        chosen,
        cloud.x.samples,
        cloud.x.rewards.reshape(systems, particles),
        cloud,
        model.failures,
        model.network_rows,
        model.scored_rows,
    )
