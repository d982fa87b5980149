"""The function that users call: what it returns, counts, repeats and refuses."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from diffreward.pipelines.enumerable import TableReward, masked_chain
from diffreward.pipelines.gaussian_mixture import (
    GaussianMixture,
    GaussianMixtureDiffusion,
    LinearReward,
)
from diffreward.samples import Samples, vectors
from diffreward.steering import BestOfN, FKSteering, Steered, steer_diffusion

PROMPTS = ["a", "b", "c"]
EAGER = FKSteering(5, 2.0, ess_threshold=1.0, interval=2, start=0.2, stop=1.0)


def world(steps: int = 10, **settings: float) -> GaussianMixtureDiffusion:
    law = GaussianMixture([0.6, 0.4], [[-1.0, 0.0], [1.0, 0.5]], 0.5)
    return GaussianMixtureDiffusion(law, steps, **settings)


def reward(samples: Samples, prompts: Sequence[str]) -> Tensor:
    """A reward that depends on the prompt, so that a wrong order of prompts shows."""
    sign = torch.tensor([1.0 if prompt == "a" else -1.0 for prompt in prompts])
    return sign * vectors(samples)[:, 0]


class Counting(nn.Module):
    """Counts the rows that go through a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.rows = network, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.rows += len(x)
        return self.network(x, t)


def test_one_network_row_per_particle_and_step() -> None:
    diffusion = world()
    diffusion.network = counting = Counting(diffusion.network)
    judged = []

    def counted(samples: Samples, prompts: Sequence[str]) -> Tensor:
        judged.append(len(prompts))
        return reward(samples, prompts)

    steered = steer_diffusion(diffusion, counted, PROMPTS, EAGER, rows=4)
    assert counting.rows == steered.cost.network_rows == 3 * 5 * 10
    # States 2, 4, 6, 8 of ten, and the finished samples.
    assert sum(judged) == steered.cost.scored_rows == 3 * 5 * 5
    assert max(judged) == 4


def test_best_of_n_scores_once() -> None:
    steered = steer_diffusion(world(), reward, PROMPTS, BestOfN(6))
    assert (steered.cost.network_rows, steered.cost.scored_rows) == (3 * 6 * 10, 3 * 6)
    assert (steered.cloud.ancestors == torch.arange(6)).all()


def test_the_parts_of_the_result_belong_together() -> None:
    steered = steer_diffusion(world(), reward, PROMPTS, EAGER)
    assert len(steered.samples) == 3 and len(steered.particles) == 15
    prompts = [prompt for prompt in PROMPTS for _ in range(5)]
    again = reward(steered.particles, prompts).reshape(3, 5).double()
    torch.testing.assert_close(steered.rewards, again)
    torch.testing.assert_close(steered.rewards.amax(1), reward(steered.samples, PROMPTS).double())
    assert torch.equal(steered.chosen, steered.rewards.argmax(1))
    assert steered.cloud.ess.shape == (11, 3)
    assert steered.cloud.ancestors.shape == (10, 3, 5)
    assert steered.cloud.log_evidence.shape == (3,)
    assert steered.failures.tolist() == [0, 0, 0]


def same(one: Steered, other: Steered, systems: int = 3) -> bool:
    n = systems * 5
    return torch.allclose(
        vectors(one.particles)[:n], vectors(other.particles)[:n], atol=1e-5
    ) and torch.equal(one.cloud.ancestors[:, :systems], other.cloud.ancestors[:, :systems])


@pytest.mark.parametrize("scheme", ["systematic", "multinomial", "ssp", "winner"])
def test_neither_rows_nor_other_prompts_change_a_particle(scheme) -> None:
    settings = FKSteering(5, 2.0, "max", scheme, 1.0, interval=2, start=0.2, stop=1.0)
    whole = steer_diffusion(world(), reward, PROMPTS, settings, seed=3)
    for rows in (1, 4, 7):
        assert same(whole, steer_diffusion(world(), reward, PROMPTS, settings, 3, rows=rows))
    assert same(whole, steer_diffusion(world(), reward, PROMPTS[:2], settings, seed=3), systems=2)


def test_tokens_too_are_steered_in_blocks_of_any_size() -> None:
    table = torch.linspace(-1, 1, 16)
    settings = FKSteering(6, 3.0, ess_threshold=1.0, interval=1, start=0.0, stop=1.0)
    results = [
        steer_diffusion(
            masked_chain(length=2), TableReward(table), ["", ""], settings, rows=rows
        ).particles.ids
        for rows in (64, 5)
    ]
    assert torch.equal(*results)


def test_the_seed_decides() -> None:
    one, again, other = (
        steer_diffusion(world(), reward, PROMPTS, EAGER, seed=seed) for seed in (1, 1, 2)
    )
    assert same(one, again) and not same(one, other)


def test_no_gradient_is_kept() -> None:
    steered = steer_diffusion(world(), reward, PROMPTS, EAGER)
    assert not vectors(steered.particles).requires_grad
    assert not steered.cloud.log_weights.requires_grad


def test_the_best_of_four_standard_normal_draws_has_mean_1_029() -> None:
    # 1.02938 and variance 0.49172: the largest of four standard normal numbers.
    diffusion = GaussianMixtureDiffusion(GaussianMixture([1.0], [[0.0]], 1.0), num_steps=3)
    steered = steer_diffusion(diffusion, LinearReward([1.0]), [""] * 1000, BestOfN(4), rows=4000)
    error = math.sqrt(0.49172 / 1000)
    assert abs(vectors(steered.samples).mean() - 1.02938) < 4 * error


def test_drawn_particles_follow_the_tilted_law() -> None:
    # N(0, 1) tilted by exp(x) is N(1, 1). The bias of one draw from 64 particles is of the order
    # Var(w) / 64 = 1.7 / 64; the standard error of 500 draws is 0.045.
    diffusion = GaussianMixtureDiffusion(GaussianMixture([1.0], [[0.0]], 1.0), num_steps=3)
    settings = FKSteering(64, 1.0, interval=1, start=0.4, stop=1.0, select="draw")
    steered = steer_diffusion(diffusion, LinearReward([1.0]), [""] * 500, settings, rows=1 << 15)
    x = vectors(steered.samples)
    assert abs(x.mean() - 1) < 4 / math.sqrt(500) + 1.7 / 64
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / 500) + 1.7 / 64


def failing_below(threshold: float):
    def score(samples: Samples, prompts: Sequence[str]) -> Tensor:
        x = vectors(samples)[:, 0]
        return x.masked_fill(x < threshold, math.nan)

    return score


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("select", ["best", "draw"])
@pytest.mark.parametrize("scheme", ["systematic", "winner"])
def test_particles_without_a_score_die_and_are_counted(threshold, select, scheme) -> None:
    settings = FKSteering(
        32, -1.0, resampling=scheme, ess_threshold=threshold, interval=3, start=0.5, select=select
    )
    # The scale is negative: a failure that counted as a low reward would be the best of all.
    steered = steer_diffusion(world(), failing_below(0.0), [""] * 20, settings)
    assert steered.failures.sum() > 0
    assert (vectors(steered.samples)[:, 0] >= 0).all()
    failed = steered.rewards.isnan()
    assert (steered.cloud.log_weights[failed] == -torch.inf).all()


def test_a_prompt_without_any_score_is_an_error_that_names_the_step() -> None:
    settings = FKSteering(4, interval=5, start=0.5, stop=1.0)
    with pytest.raises(FloatingPointError, match="step 5 "):
        steer_diffusion(world(), failing_below(math.inf), ["a"], settings)
    with pytest.raises(FloatingPointError, match="step 10 "):
        steer_diffusion(world(), failing_below(math.inf), ["a"], BestOfN(4))


def test_the_evidence_of_a_search_is_refused() -> None:
    settings = FKSteering(4, resampling="winner", ess_threshold=1.0)
    assert steer_diffusion(world(), reward, PROMPTS, settings).cloud.log_evidence is None


def test_one_particle_is_plain_sampling() -> None:
    steered = steer_diffusion(world(), reward, PROMPTS, FKSteering(1))
    assert steered.chosen.tolist() == [0, 0, 0]


def test_nothing_to_steer_is_refused() -> None:
    with pytest.raises(ValueError, match="prompts"):
        steer_diffusion(world(), reward, [], BestOfN())


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_a_constant_added_to_the_reward_moves_the_evidence_only(potential) -> None:
    """A score that began at 0 would make `maximum` blind to rewards that are all negative."""
    settings = FKSteering(8, 2.0, potential, interval=3, start=0.2, stop=1.0)
    plain, shifted = (
        steer_diffusion(world(), LinearReward([1.0, 0.0]), PROMPTS, settings),
        steer_diffusion(
            world(), lambda s, p: LinearReward([1.0, 0.0])(s, p) - 8, PROMPTS, settings
        ),
    )
    assert torch.equal(plain.cloud.ancestors, shifted.cloud.ancestors)
    assert (plain.cloud.ancestors != torch.arange(8)).any()
    torch.testing.assert_close(
        plain.cloud.log_evidence - 16, shifted.cloud.log_evidence, rtol=0, atol=1e-4
    )
