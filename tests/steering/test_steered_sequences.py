"""Steering masked diffusion against the tilted law, which is summed: SVDD, FK steering, guidance.

What is claimed: FK's evidence has no bias whatever judges unfinished sequences, also with guidance;
SVDD follows the tilted law if it knows the exact soft value, and does not with any other.
"""

import math
from dataclasses import replace

import pytest
import torch
from sequence_world import table_world, tempting
from torch import Tensor

from diffreward.enumeration import number
from diffreward.pipelines.enumerable import random_law, total_variation
from diffreward.pipelines.masked_diffusion import MaskedDiffusion
from diffreward.random import randn, stream
from diffreward.reward import RewardFunction
from diffreward.rewards.landscape import Landscape
from diffreward.sequences.exact_laws import law_of, step_masses
from diffreward.sequences.tilted_law import StateTable, TiltedLaw, conditionals
from diffreward.steering import DAS, SVDD, FKSteering
from diffreward.steering.result import choose
from diffreward.steering.smc import Cloud, smc
from diffreward.steering.steered import Particles, StateValue, SteeredDiffusion

V, L, STEPS, ALPHA = 3, 4, 12, 0.15
PLAIN = random_law(V, L)
REWARDS = tempting(V, L)
WORLD = table_world(PLAIN, V, L, STEPS)
# The law that is tilted is that of the sampler with its few steps.
CHAIN = law_of(step_masses(conditionals(PLAIN, V), WORLD.masked.tolist())[-1], V)
TARGET = TiltedLaw(CHAIN, REWARDS, V, ALPHA)
REWARD = Landscape(REWARDS, "ACG")
VALUES: dict[str, Tensor | None] = {
    "the reward of the clean prediction": None,
    "the soft value": TARGET.soft_values,
    "the mean": TARGET.mean_values,
    "noise": randn((len(TARGET.soft_values),), stream(0, "values")).double() / 5,
}


def run(
    settings: FKSteering,
    systems: int,
    value: Tensor | None,
    seed: int = 0,
    world: MaskedDiffusion = WORLD,
    reward: RewardFunction = REWARD,
) -> Cloud[Particles]:
    """One generator for all chains: quicker than one per chain, and as good for statistics."""
    judge: StateValue | None = None if value is None else StateTable(value, V)
    noise, resampling = stream(seed, "noise"), stream(seed, "resampling")
    prompts = [""] * systems
    model = SteeredDiffusion(world, reward, prompts, settings, noise, 1 << 17, judge)
    with torch.no_grad():
        return smc(model, settings.particle_filter(systems, resampling))


def law(cloud: Cloud[Particles]) -> Tensor:
    """Of a finished particle drawn by its weight from a system, (V^L,)."""
    cells = number(cloud.x.x, V)
    shares = (cloud.weights / len(cloud.weights)).flatten()
    return torch.zeros(V**L, dtype=torch.float64).index_add(0, cells, shares)


def chosen(settings: FKSteering, systems: int, value: Tensor | None) -> Tensor:
    """The law of what a method returns, (V^L,), from as many systems."""
    cloud = run(settings, systems, value)
    rewards = cloud.x.rewards.reshape(systems, -1)
    index = choose(settings, cloud, rewards, stream(5))
    cells = number(cloud.x.x, V).reshape(systems, -1).gather(1, index[:, None]).squeeze(1)
    return cells.bincount(minlength=V**L).double() / systems


def floor(n: int) -> float:
    """The mean total variation of n exact draws."""
    drawn = torch.multinomial(TARGET.optimum.expand(20, -1), n, True, generator=stream(1))
    counts = torch.nn.functional.one_hot(drawn, V**L).sum(1)
    return float(total_variation(counts / n, TARGET.optimum).mean())


def svdd(candidates: int) -> FKSteering:
    """With the last candidate drawn like those before it."""
    return SVDD(candidates, 1 / ALPHA).settings()


def test_svdd_with_the_exact_value_comes_to_the_tilted_law_as_one_over_the_candidates() -> None:
    n, found = 3000, {}
    for m in (2, 8, 32):
        drawn = chosen(svdd(m), n, TARGET.soft_values)
        found[m] = float(total_variation(drawn, TARGET.optimum))
    assert found[32] < 0.08
    assert found[32] < floor(n) + 0.02
    assert found[2] - floor(n) > 3 * (found[8] - floor(n)) > 0


@pytest.mark.parametrize("name", ["the reward of the clean prediction", "the mean"])
def test_svdd_with_another_value_stays_away_from_it_whatever_the_candidates(name: str) -> None:
    n = 2000
    drawn = chosen(svdd(32), n, VALUES[name])
    # Of exact draws the total variation has a standard deviation of 0.004 around its mean.
    assert float(total_variation(drawn, TARGET.optimum)) > floor(n) + 0.04


def test_svdd_that_takes_the_best_candidate_is_a_search_and_has_no_target() -> None:
    """More candidates lead to more reward, and further away from the tilted law."""
    few, many = (chosen(SVDD(m, math.inf).settings(), 1000, None) for m in (4, 32))
    assert float(TARGET.mean(many)) > float(TARGET.mean(few)) + 0.02
    assert float(TARGET.mean(many)) > float(TARGET.mean(TARGET.optimum))
    assert float(TARGET.objective(many)) < float(TARGET.objective(few))


@pytest.mark.parametrize("scheme", ["systematic", "multinomial"])
@pytest.mark.parametrize("name", VALUES)
def test_the_evidence_of_fk_steering_has_no_bias_whatever_judges(name: str, scheme: str) -> None:
    systems = 3000
    settings = FKSteering(4, 1 / ALPHA, resampling=scheme, interval=2)
    cloud = run(settings, systems, VALUES[name])
    assert cloud.log_evidence is not None
    z = (cloud.log_evidence - TARGET.best / ALPHA).exp()
    error = float(z.std()) / math.sqrt(systems)
    assert abs(float(z.mean()) - 1) < 3 * error
    assert error < 0.06


def test_the_evidence_hardly_varies_if_the_value_is_exact() -> None:
    """A particle's weight is then its own share of what is to come, whatever it has become."""
    settings = FKSteering(64, 1 / ALPHA, interval=1, ess_threshold=1.0)
    spreads = {}
    for name, value in VALUES.items():
        cloud = run(settings, 100, value, seed=2)
        assert cloud.log_evidence is not None
        spreads[name] = float((cloud.log_evidence - TARGET.best / ALPHA).exp().std())
    assert spreads["the soft value"] == min(spreads.values())
    assert spreads["noise"] > 2 * spreads["the soft value"]


def test_fk_steering_comes_to_the_reward_of_the_tilted_law_as_particles_grow() -> None:
    expected, missed = float(TARGET.mean(TARGET.optimum)), []
    for n in (4, 16, 256):
        settings = FKSteering(n, 1 / ALPHA, interval=2)
        cloud = run(settings, max(16, 4096 // n), TARGET.mean_values)
        missed.append(expected - float(TARGET.mean(law(cloud))))
    assert missed[0] > missed[1] > 0.01
    assert abs(missed[2]) < 0.01


METHODS = {
    "DAS": DAS(4, 1 / ALPHA).settings(),
    "guidance": FKSteering(4, 1 / ALPHA, guidance=1.0, interval=1),
    "half": FKSteering(4, 1 / ALPHA, guidance=0.5, interval=3, ess_threshold=1.0),
}


@pytest.mark.parametrize("name", METHODS)
def test_guided_particles_have_unbiased_evidence_too(name: str) -> None:
    systems = 2000
    cloud = run(METHODS[name], systems, None)
    assert cloud.log_evidence is not None
    z = (cloud.log_evidence - TARGET.best / ALPHA).exp()
    error = float(z.std()) / math.sqrt(systems)
    assert abs(float(z.mean()) - 1) < 3 * error
    assert error < 0.1


def test_guidance_moves_the_particles_and_without_correction_the_evidence_is_wrong() -> None:
    settings = METHODS["guidance"]
    corrected = run(settings, 500, None)
    unguided = run(replace(settings, guidance=0.0), 500, None)
    wrong = run(replace(settings, corrected=False), 500, None)
    reward = [float(REWARDS[number(c.x.x, V)].mean()) for c in (unguided, corrected)]
    assert reward[1] > reward[0] + 0.02
    assert wrong.log_evidence is not None
    z = (wrong.log_evidence - TARGET.best / ALPHA).exp()
    assert abs(float(z.mean()) - 1) > 4 * float(z.std()) / math.sqrt(500)


def test_a_guided_value_is_differentiated_in_place_of_the_reward() -> None:
    cloud = run(METHODS["guidance"], 1000, TARGET.soft_values)
    assert cloud.log_evidence is not None
    z = (cloud.log_evidence - TARGET.best / ALPHA).exp()
    assert abs(float(z.mean()) - 1) < 3 * float(z.std()) / math.sqrt(1000)


def test_every_steered_law_misses_the_best_objective_by_its_divergence() -> None:
    for settings in (*METHODS.values(), svdd(4)):
        found = law(run(settings, 500, None))
        missed = TARGET.best - float(TARGET.objective(found))
        divergence = torch.xlogy(found, found / TARGET.optimum).sum()
        assert missed == pytest.approx(ALPHA * float(divergence), abs=1e-9)
        assert missed > 0
