"""A budget is turned into particles, and random numbers are as if nobody had timed anything."""

import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler
from steering.mixture_pipeline import BIMODAL, CURVE, MixturePipeline, decode, mixture_pipeline
from torch import Generator

from diffreward.pipelines.gaussian_mixture import LinearReward
from diffreward.steering import BestOfN, FKSteering, NoiseSearch, PathSearch, steer
from diffreward.steering.drop_in.budget import put_back, seconds_in, within_rows, within_seconds

UPWARDS = LinearReward([1.0])


def pipeline() -> MixturePipeline:
    return mixture_pipeline(BIMODAL, DDIMScheduler(**CURVE, clip_sample=False))


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [("30s", 30), ("0.5s", 0.5), ("1.s", 1), ("2 s", 2), (400, None), (None, None)],
)
def test_seconds_of_a_budget(budget: int | str | None, seconds: float | None) -> None:
    assert seconds_in(budget) == seconds


@pytest.mark.parametrize("wrong", [0, -3, "", "s", "30", "-1s", "0s", "1m", "1 s!", 2.5])
def test_what_is_no_budget_is_refused_when_steering_is_set_up(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"denoiser rows \(400\) or seconds \('30s'\)"):
        steer(pipeline(), UPWARDS, budget=wrong)


@pytest.mark.parametrize(
    ("method", "rows", "particles"),
    [
        (BestOfN(), 100, 10),
        (BestOfN(), 109, 10),
        (BestOfN(), 10, 1),
        (NoiseSearch(rounds=3), 100, 3),
        # Ten steps, and twice back from the ninth state to the fifth: 9 + 5 + 6.
        (PathSearch(), 100, 5),
    ],
)
def test_rows_pay_for_whole_particles(method, rows: int, particles: int) -> None:
    paid = within_rows(method.settings(), rows, 10)
    assert paid.particles == particles
    assert paid.cost(10).network_rows <= rows < paid.cost(10).network_rows * (1 + 1 / particles)


def test_too_few_rows_for_one_particle_are_refused() -> None:
    with pytest.raises(ValueError, match=r"9 rows .* one particle, which takes 10: give a larger"):
        within_rows(FKSteering(), 9, 10)
    with pytest.raises(ValueError, match="give a larger one, or fewer steps"):
        steer(pipeline(), UPWARDS, budget=9)([""], num_inference_steps=10)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, HeunDiscreteScheduler])
@pytest.mark.parametrize("steps", [10, None])
def test_the_network_sees_at_most_the_rows_that_were_paid_for(scheduler, steps) -> None:
    """With the pipeline's own 20 steps where none are asked for, and two stages in most of Heun."""
    pipe = steer(mixture_pipeline(BIMODAL, scheduler(**CURVE)), UPWARDS, decoder=decode, budget=120)
    pipe(["", ""], **({} if steps is None else {"num_inference_steps": steps}))
    stages = 1 if scheduler is DDIMScheduler else 2
    calls = stages * (steps or 20) - (stages - 1)
    assert pipe.last.rewards.shape == (2, 120 // calls)
    # The network sees both prompts at once.
    assert pipe.last.cost.network_rows == 2 * (120 // calls) * calls


def test_seconds_pay_for_at_least_one_particle() -> None:
    method = BestOfN(7).settings()
    assert [within_seconds(method, left, 0.25).particles for left in (-1, 0, 0.3, 2.6)] == [
        1,
        1,
        1,
        10,
    ]


def test_a_call_that_was_timed_first_has_the_random_numbers_of_one_that_was_not() -> None:
    source = Generator().manual_seed(5)
    timed = steer(pipeline(), UPWARDS, BestOfN(), decoder=decode, budget="3s", rows=4096)
    one = timed([""], generator=source).states
    n = timed.last.rewards.shape[1]
    assert n > 1
    again = Generator().manual_seed(5)
    plain = steer(pipeline(), UPWARDS, BestOfN(n), decoder=decode, rows=4096)
    assert torch.equal(plain([""], generator=again).states, one)
    assert torch.equal(source.get_state(), again.get_state())


def test_without_time_the_first_particle_is_the_result() -> None:
    pipe = steer(pipeline(), UPWARDS, BestOfN(8), decoder=decode, budget="0.000001s")
    found = pipe([""], generator=Generator().manual_seed(5)).states
    assert torch.equal(found, pipeline()([""], generator=Generator().manual_seed(5)).states)
    assert pipe.last.rewards.shape == (1, 1)


def test_generators_are_put_back_even_after_a_failure() -> None:
    one, two = Generator().manual_seed(1), Generator().manual_seed(2)
    for noise in (one, [one, two], None):
        states = [one.get_state(), two.get_state(), torch.get_rng_state()]
        with pytest.raises(KeyError), put_back(noise):
            for source in (one, None) if noise is one else (one, two, None):
                torch.rand(3, generator=source if noise is not None else None)
            raise KeyError
        found = [one.get_state(), two.get_state(), torch.get_rng_state()]
        assert all(torch.equal(a, b) for a, b in zip(found, states, strict=True))
