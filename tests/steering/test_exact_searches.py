"""Best-of-N and the searches against exact numbers, through the scheduler's hook."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from steering.mixture_pipeline import (
    BIMODAL,
    CURVE,
    SCHEDULERS,
    STEPS,
    Chain,
    decode,
    levels,
    mixture_pipeline,
    run,
    step_law,
)
from torch import Generator, Tensor

from diffreward.pipelines.gaussian_mixture import GaussianMixture, LinearReward
from diffreward.samples import Samples, vectors
from diffreward.steering import (
    DAS,
    SVDD,
    BeamSearch,
    BestOfN,
    FKSteering,
    NoiseSearch,
    PathSearch,
    Steered,
    SteeringMethod,
    steer,
)

UPWARDS = LinearReward([1.0])
SOLVERS = {
    **SCHEDULERS,
    "euler": EulerDiscreteScheduler(**CURVE, timestep_spacing="leading", steps_offset=1),
    "dpm": DPMSolverMultistepScheduler(**CURVE),
}
METHODS = [
    BestOfN(4),
    FKSteering(4, 2.0, interval=4),
    DAS(4, 2.0),
    SVDD(4, 2.0),
    BeamSearch(4, 2),
    NoiseSearch(4),
    PathSearch(4, 2),
]


def best(steered: Steered) -> Tensor:
    """The highest reward of each system, (G,)."""
    return steered.rewards.amax(1)


def assert_grows(results: Sequence[Tensor]) -> None:
    """Each mean is above the one before by 4 standard errors of their difference."""
    for low, high in pairwise(results):
        error = math.hypot(low.std(), high.std()) / math.sqrt(len(low))
        assert high.mean() > low.mean() + 4 * error


@pytest.mark.parametrize("scheduler", SOLVERS)
def test_best_of_n_is_the_best_of_the_plain_call(scheduler) -> None:
    """Bit by bit, with samplers of one step, of memory, and with noise."""
    pipe = mixture_pipeline(BIMODAL, SOLVERS[scheduler])
    plain = pipe([""] * 40, generator=Generator().manual_seed(3)).states
    steered = steer(pipe, UPWARDS, BestOfN(4), decoder=decode, rows=1 << 20)
    output = steered([""] * 10, generator=Generator().manual_seed(3)).states
    assert torch.equal(steered.last.all_particles().states, plain)
    chosen = plain.reshape(10, 4).argmax(1)
    assert torch.equal(output, plain[torch.arange(10) * 4 + chosen])


def test_the_best_of_four_standard_normal_draws_has_mean_1_029() -> None:
    """1.02938 and variance 0.49172 (the largest of four standard normal numbers), shrunk by the
    chain: each step of DDIM is linear, and takes the mean to the mean."""
    law = GaussianMixture([1.0], [[0.0]], 1.0)
    shrunk, one = 1.0, torch.ones(1)
    route = levels(SCHEDULERS["ddim"], STEPS)
    for here, there in pairwise(route):
        shrunk *= step_law(one, here[0] * one, here, there, eta=0)[0].item()
    assert 0.9 < shrunk < 1
    x = vectors(run(SCHEDULERS["ddim"], UPWARDS, BestOfN(4), 4000, law).samples)
    assert abs(x.mean() - 1.02938 * shrunk) < 4 * shrunk * math.sqrt(0.49172 / 4000)


@pytest.mark.parametrize("method", [BeamSearch(6, 2), PathSearch(6, 2), BeamSearch(6, 1)])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_search_keeps_the_best_by_reward(scheduler, method) -> None:
    """By the reward itself: what a child has gained on its parent says nothing of its rank."""
    steered = run(SCHEDULERS[scheduler], UPWARDS, method, 50)
    width = len(set(steered.lineage[steered.history[0][0], 0].tolist()))
    for visit, rewards in steered.history:
        if rewards.std(1).max() < 1e-4:
            continue  # in the pure noise of a flow all predictions are the same but for rounding
        expected = rewards.topk(width).indices.repeat_interleave(6 // width, 1)
        assert torch.equal(steered.lineage[visit].sort().values, expected.sort().values)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_more_particles_find_more_reward(scheduler) -> None:
    for kind in (BestOfN, PathSearch, lambda n: BeamSearch(n, 1)):
        assert_grows([best(run(SCHEDULERS[scheduler], UPWARDS, kind(n), 300)) for n in (1, 3, 9)])
    kinds = (BestOfN, PathSearch, BeamSearch)
    searched = [best(run(SCHEDULERS[scheduler], UPWARDS, kind(4), 300)) for kind in kinds]
    assert_grows(searched)


@pytest.mark.parametrize("scheduler", ["ddim", "flow", "dpm"])
def test_more_rounds_find_more_reward(scheduler) -> None:
    """Means after 1 and 2 rounds of 4 (ddim): 0.99 and 1.17."""
    rounds = [best(run(SOLVERS[scheduler], UPWARDS, NoiseSearch(4, n), 100)) for n in (1, 2, 4)]
    for fewer, more in pairwise(rounds):
        assert (more > fewer - 1e-5).all()
        assert (more - fewer).mean() > 4 * (more - fewer).std() / math.sqrt(100)


@pytest.mark.parametrize(
    "scheduler",
    [
        "ddim",
        "flow",
        "dpm",
        "euler",
    ],
)
def test_the_best_noise_stays_in_the_race(scheduler) -> None:
    one, three = (
        run(SOLVERS[scheduler], UPWARDS, NoiseSearch(4, n, spread=0.0), 20) for n in (1, 3)
    )
    torch.testing.assert_close(best(one), best(three), rtol=0, atol=1e-5)
    # Without spread all are at the same noise.
    torch.testing.assert_close(three.rewards, best(three)[:, None].expand(-1, 4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("search", ["constant reward", "all kept"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_path_search_that_chooses_nothing_keeps_the_law_of_its_chain(scheduler, search) -> None:
    """Against the quadrature of the way there, back and there again, within 4 standard errors."""
    at, to, forth = 16, 8, levels(SCHEDULERS[scheduler], STEPS)
    route = [*forth[: at + 1], *forth[to : at + 1], *forth[to : at + 1], *forth[at + 1 :]]
    etas = [float(scheduler == "ddpm")] * at + [1.0] * (len(route) - 1 - at)
    chain = Chain(BIMODAL, route, etas)
    x, mass = chain.nodes[-1], chain.masses()
    reward = UPWARDS if search == "all kept" else LinearReward([0.0])
    steered = run(SCHEDULERS[scheduler], reward, PathSearch(4, 4, 0.8, 0.4), 2500)
    assert (steered.lineage != torch.arange(4)).any() == (search == "all kept")
    found = vectors(steered.particles)[:, 0].double()
    for f in (torch.clone, torch.square, lambda x: (3 * x).tanh()):
        # Permuted rows of one prompt are as independent as they were.
        error = f(found).std() / math.sqrt(len(found))
        assert abs(f(found).mean() - mass @ f(x)) < 4 * error


def by_prompt(samples: Samples, prompts: Sequence[str]) -> Tensor:
    sign = torch.tensor([1.0 if prompt == "up" else -1.0 for prompt in prompts])
    return sign * vectors(samples)[:, 0]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_each_prompt_gets_its_own_reward(scheduler, method) -> None:
    prompts = ["up", "down"] * 50
    steered = run(SCHEDULERS[scheduler], by_prompt, method, prompts)
    x = vectors(steered.samples)[:, 0]
    # The mean without steering is -0.2 and its standard error 0.15.
    assert x[::2].mean() > 0.4 and x[1::2].mean() < -0.8
    torch.testing.assert_close(
        steered.rewards.amax(1), by_prompt(steered.samples, prompts).double()
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_other_prompts_change_nothing(scheduler, method: SteeringMethod) -> None:
    """With a generator per prompt."""
    pipe = steer(
        mixture_pipeline(BIMODAL, SCHEDULERS[scheduler]), by_prompt, method, decoder=decode
    )
    alone, together = (
        pipe(["up", "down", "up"][:n], generator=[Generator().manual_seed(i) for i in range(n)])
        for n in (1, 3)
    )
    torch.testing.assert_close(alone.states, together.states[:1])
