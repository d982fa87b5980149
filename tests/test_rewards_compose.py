"""Rewards of all forms with every algorithm and every steering method: none knows of the other."""

from collections.abc import Callable, Sequence

import pytest
import torch
from matrix import methods
from torch import Tensor

from diffreward.adaptive import adapting
from diffreward.algorithm import Algorithm, Batch
from diffreward.moments import Moments
from diffreward.pipelines.gaussian_mixture import (
    GaussianMixture,
    GaussianMixtureDiffusion,
    LinearReward,
)
from diffreward.policy import Full, Policy
from diffreward.reward import Reward
from diffreward.rewards import (
    MMD,
    PAR,
    Asynchronous,
    Cached,
    Clipped,
    Constrained,
    Constraint,
    FrechetDistance,
    Gated,
    NormalisedSum,
    PessimisticEnsemble,
    RunningStandardised,
    SoftMinimum,
    Standardised,
    Vendi,
    WorstCase,
)
from diffreward.samples import Samples, vectors
from diffreward.steering import (
    DAS,
    SVDD,
    BestOfN,
    FKSteering,
    Guidance,
    SteeringMethod,
    steer_diffusion,
)

LAW = GaussianMixture([1.0, 2.0], [[-1.0, 0.0], [1.0, 0.5]], 0.5)
UP, RIGHT = LinearReward([0.0, 1.0]), LinearReward([1.0, 0.0])
REFERENCE = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


def values(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return vectors(samples)[:, None]


REWARDS: dict[str, Callable[[], Reward]] = {
    "sum": lambda: 2 * Clipped(UP, -5, 5) - 0.5 * WorstCase([UP, RIGHT]),
    "normalised sum": lambda: NormalisedSum([UP, RIGHT], [1.0, 2.0]),
    "soft minimum": lambda: SoftMinimum([UP, RIGHT], 0.5),
    "pessimistic": lambda: PessimisticEnsemble([UP, RIGHT]),
    "constrained": lambda: Constrained(UP, [Constraint(RIGHT, 0.5, 1.0)]),
    "gated": lambda: Gated(UP, RIGHT, -9.0, 0.0),
    "PAR": lambda: PAR(UP, 0.0),
    "z-score": lambda: Standardised(UP),
    "running z-score": lambda: RunningStandardised(UP),
    "threads": lambda: Asynchronous(UP, workers=2, rows=3),
    "cached": lambda: Cached(UP),
    "FAD with a bank": lambda: FrechetDistance(values, Moments.of(REFERENCE), bank=16),
    "MMD": lambda: MMD(values, REFERENCE, "gaussian"),
    "diversity and quality": lambda: Vendi(values) + 0.1 * Clipped(UP, -5, 5),
}
STEERING: dict[str, SteeringMethod] = {
    "best of n": BestOfN(4),
    "FK": FKSteering(4),
    "SVDD": SVDD(4),
    "DAS": DAS(4),
    "guidance": Guidance(1.0),
}
every_reward = pytest.mark.parametrize("make", REWARDS.values(), ids=REWARDS)


def updated(algorithm: Algorithm, reward: Reward) -> tuple[Policy, float]:
    """After two updates, and the largest gradient of the second."""
    policy = Full().attach(GaussianMixtureDiffusion(LAW, 4), rows=5)
    optimizer = torch.optim.Adam(policy.parameters().values(), lr=1e-3)
    largest = 0.0
    for update in (1, 2):
        batch = Batch(["a", "b"], 4, seed=0, update=update)
        optimizer.zero_grad()
        with adapting(reward):
            experience = algorithm.collect(policy, reward, batch)
            for loss in algorithm.losses(policy, experience, 0):
                loss.backward()
        gradients = [p.grad for p in policy.parameters().values() if p.grad is not None]
        largest = max(float(gradient.abs().max()) for gradient in gradients)
        optimizer.step()
    return policy, largest


@every_reward
@pytest.mark.parametrize("kind", methods(), ids=lambda kind: kind.__name__)
def test_every_method_learns_from_every_form(kind: type[Algorithm], make) -> None:
    policy, largest = updated(kind(), make())
    assert 0 < largest < float("inf")
    assert all(p.isfinite().all() for p in policy.parameters().values())


@every_reward
@pytest.mark.parametrize("method", STEERING.values(), ids=STEERING)
def test_every_way_of_steering_follows_every_form(method: SteeringMethod, make) -> None:
    model = GaussianMixtureDiffusion(LAW, 4)
    steered = steer_diffusion(model, make(), ["a", "b"], method, rows=5)
    assert vectors(steered.samples).isfinite().all()
    assert len(steered.samples) == 2
