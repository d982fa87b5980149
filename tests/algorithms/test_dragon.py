"""DRAGON: for single samples it is the methods it is made of; for sets, the set gets better."""

import pytest
import torch
from linear_gaussian import LinearGaussian
from torch import Tensor

from diffreward.algorithm import Algorithm, Batch
from diffreward.algorithms.diffusion_dpo import DiffusionDPO
from diffreward.algorithms.dragon import DRAGON
from diffreward.algorithms.ipo import IPO
from diffreward.diffusion import draw
from diffreward.pipelines.gaussian_mixture import LinearReward
from diffreward.policy import Full, Policy
from diffreward.random import stream
from diffreward.reward import RewardFunction
from diffreward.samples import Samples, vectors
from diffreward.set_reward import SetReward

UP = LinearReward([1.0])


def values(samples: Samples, prompts: list[str]) -> Tensor:
    return vectors(samples)[:, None, :]


class Spread(SetReward):
    """Minus how far mean and standard deviation of the set are from two targets."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__(values)
        self.mean, self.std = mean, std

    def value(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        weights = torch.full_like(rows[:, 0], 1 / len(rows)) if weights is None else weights
        mean = weights @ rows[:, 0]
        std = (weights @ (rows[:, 0] - mean).square()).sqrt()
        return -(mean - self.mean).square() - (std - self.std).square()


def batch(update: int = 1, prompts: int = 64, samples: int = 2) -> Batch:
    return Batch([str(i) for i in range(prompts)], samples, seed=0, update=update)


def gradient(algorithm: Algorithm, reward: RewardFunction, asked: Batch) -> Tensor:
    policy = Full().attach(LinearGaussian(), rows=4096)
    # Away from the reference, where nothing is degenerate.
    with torch.no_grad():
        policy.diffusion.network.offset += 0.1
    for loss in algorithm.losses(policy, algorithm.collect(policy, reward, asked), 0):
        loss.backward()
    return policy.diffusion.network.offset.grad


@pytest.mark.parametrize("exchanges", [0, 1])
def test_with_a_reward_of_samples_it_is_diffusion_dpo_on_pairs(exchanges: int) -> None:
    ours = gradient(DRAGON(beta=0.7, exchanges=exchanges), UP, batch())
    theirs = gradient(DiffusionDPO(beta=0.7), UP, batch())
    torch.testing.assert_close(ours, theirs, atol=0, rtol=1e-6)


def test_with_a_reward_of_samples_it_is_kto_on_noise_that_a_prompt_shares() -> None:
    ours = gradient(DRAGON("kto", beta=0.7), UP, batch())
    theirs = gradient(IPO("kto", beta=0.7), UP, batch())
    torch.testing.assert_close(ours, theirs, atol=0, rtol=1e-6)


def after_training(algorithm: Algorithm, reward: RewardFunction, updates: int) -> Policy:
    policy = Full().attach(LinearGaussian(), rows=4096)
    optimizer = torch.optim.Adam(policy.parameters().values(), lr=0.02)
    for update in range(1, updates + 1):
        optimizer.zero_grad()
        experience = algorithm.collect(policy, reward, batch(update))
        for loss in algorithm.losses(policy, experience, 0):
            loss.backward()
        optimizer.step()
    return policy


def drawn(policy: Policy) -> Tensor:
    world = policy.diffusion
    return draw(world, world.encode([""] * 4096), stream(1), stream(2), rows=4096)[:, 0]


@pytest.mark.parametrize(
    "algorithm",
    [
        DRAGON(),
        DRAGON(exchanges=1),
        DRAGON(paired=False),
        DRAGON("kto", beta=1.0),
        DRAGON("kto", beta=1.0, paired=False),
    ],
    ids=["dpo", "exchanges", "unpaired", "kto", "unpaired-kto"],
)
def test_the_law_of_the_samples_comes_nearer_to_what_the_set_should_be(
    algorithm: Algorithm,
) -> None:
    target = Spread(mean=0.5, std=0.7)
    policy = after_training(algorithm, target, updates=25)
    with policy.reference():
        before = drawn(policy)
    after = drawn(policy)
    assert target.value(after[:, None]) > 0.5 * target.value(before[:, None])


def test_it_does_not_go_past_what_the_set_should_be() -> None:
    # A reward of samples, for the same direction, would have gone on: here the sets are balanced.
    policy = after_training(DRAGON(), Spread(mean=0.3, std=0.7), updates=60)
    assert 0.15 < drawn(policy).mean() < 0.45
    greedy = after_training(DRAGON(), UP, updates=60)
    assert drawn(greedy).mean() > 0.6


def test_samples_without_a_score_teach_nothing() -> None:
    def reward(samples: Samples, prompts: list[str]) -> Tensor:
        scores = UP(samples, prompts)
        return torch.where(torch.arange(len(scores)) % 4 == 0, torch.nan, scores)

    policy = Full().attach(LinearGaussian(), rows=4096)
    experience = DRAGON().collect(policy, reward, batch(prompts=4))
    assert experience.signs.abs().tolist() == [0, 0, 1, 1] * 2
