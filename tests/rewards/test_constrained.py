"""Multipliers: their arithmetic by hand, the optimum that they end in, and a run that resumes."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import small_runs
import torch
from colours import redness
from torch import Tensor

from diffreward.adaptive import adapting, adaptive_tensors, load_adaptive
from diffreward.conformance import check_reward
from diffreward.reward import Reward
from diffreward.rewards.constrained import Constrained, Constraint
from diffreward.rewards.relative import RunningStandardised
from diffreward.samples import Samples, Vectors, images

PROMPTS = ["", ""]
SAMPLES = Vectors(torch.tensor([[1.0, 10.0, 0.5], [3.0, 20.0, 0.1]]))


def zeroth(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return samples.values[:, 0]


def first(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return samples.values[:, 1]


def second(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return samples.values[:, 2]


def brightness(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return images(samples).mean((1, 2, 3))


def two_constraints(normalised: bool = False) -> Constrained:
    constraints = [Constraint(first, at_least=16.0, rate=0.5), Constraint(second, 0.2, 10.0)]
    return Constrained(zeroth, constraints, normalised)


def test_multipliers_move_by_rate_times_violation_and_not_below_zero() -> None:
    reward = two_constraints()
    assert reward(SAMPLES, PROMPTS).tolist() == [1.0, 3.0]
    with adapting(reward):
        assert reward(SAMPLES, PROMPTS).tolist() == [1.0, 3.0]
    assert reward.multipliers.tolist() == [0.5, 0.0]
    assert reward(SAMPLES, PROMPTS).tolist() == [1 + 0.5 * -6, 3 + 0.5 * 4]
    with adapting(reward):
        for _ in range(2):
            reward(Vectors(torch.tensor([[0.0, 15.0, 0.0]])), [""])
    assert reward.multipliers.tolist() == pytest.approx([1.0, 2.0])
    with adapting(reward):
        reward(Vectors(torch.tensor([[0.0, 99.0, 0.0]])), [""])
    assert reward.multipliers.tolist() == pytest.approx([0.0, 4.0])


def test_a_normalised_score_is_divided_by_the_weights() -> None:
    plain, normalised = two_constraints(), two_constraints(normalised=True)
    for reward in (plain, normalised):
        reward.load({"multipliers": torch.tensor([2.0, 1.5], dtype=torch.float64)})
    assert torch.allclose(normalised(SAMPLES, PROMPTS), plain(SAMPLES, PROMPTS) / 4.5)


def test_no_score_counts_for_nothing_and_stays_without() -> None:
    reward = two_constraints()
    rows = torch.tensor([[1.0, math.nan, 0.5], [3.0, 14.0, 0.5], [math.nan, 12.0, 0.5]])
    with adapting(reward):
        found = reward(Vectors(rows), [""] * 3)
    assert found.isnan().tolist() == [True, False, True]
    assert reward.multipliers.tolist() == [0.5 * 3, 0.0]
    with adapting(reward):
        reward(Vectors(rows[:1]), [""])
    with adapting(reward):
        pass
    assert reward.multipliers.tolist() == [0.5 * 3, 0.0]


def test_the_contract_of_a_reward_is_kept_in_every_state() -> None:
    reward = two_constraints()
    check_reward(reward, SAMPLES, PROMPTS)
    with adapting(reward):
        check_reward(reward, SAMPLES, PROMPTS)
    check_reward(reward, SAMPLES, PROMPTS)
    check_reward(Constraint(first, 3.0, 1.0), SAMPLES, PROMPTS)


def test_a_constraint_says_how_far_a_sample_is_above_its_bound() -> None:
    assert Constraint(first, 12.0, 1.0)(SAMPLES, PROMPTS).tolist() == [-2.0, 8.0]


def test_what_is_adaptive_inside_a_constraint_is_found() -> None:
    inner, outer = two_constraints(), two_constraints()
    whole = Constrained(outer, [Constraint(inner, 0.0, 1.0)])
    with adapting(whole):
        whole(SAMPLES, PROMPTS)
    assert inner.multipliers.tolist() == outer.multipliers.tolist() == [0.5, 0.0]
    fresh = Constrained(two_constraints(), [Constraint(two_constraints(), 0.0, 1.0)])
    load_adaptive(fresh, adaptive_tensors(whole))
    assert torch.equal(fresh(SAMPLES, PROMPTS), whole(SAMPLES, PROMPTS))


@pytest.mark.parametrize("normalised", [False, True])
def test_a_gaussian_policy_and_the_multipliers_end_in_the_optimum(normalised: bool) -> None:
    """Maximise E[-x^2 / 2] of N(m, 1) subject to E[x] >= 2 and E[-x] >= -5.

    The first constraint binds: m = 2, where the slope -m of the objective equals -lambda. The
    second one does not: its multiplier is 0. Noise of -1 and 1 has the moments of N(0, 1) that
    matter, so that nothing is random.
    """

    def parabola(samples: Samples, prompts: Sequence[str]) -> Tensor:
        return -samples.values[:, 0].square() / 2

    def value(samples: Samples, prompts: Sequence[str]) -> Tensor:
        return samples.values[:, 0]

    def negative(samples: Samples, prompts: Sequence[str]) -> Tensor:
        return -samples.values[:, 0]

    constraints = [Constraint(value, 2.0, 0.1), Constraint(negative, -5.0, 0.1)]
    reward = Constrained(parabola, constraints, normalised)
    mean, noise = torch.tensor(-4.0, requires_grad=True), torch.tensor([-1.0, 1.0])
    for _ in range(400):
        with adapting(reward):
            ascent = reward(Vectors((mean + noise)[:, None]), PROMPTS).mean()
            (slope,) = torch.autograd.grad(ascent, mean)
        mean = (mean.detach() + 0.2 * slope).requires_grad_()
    assert float(mean.detach()) == pytest.approx(2.0, abs=1e-4)
    assert reward.multipliers.tolist() == pytest.approx([2.0, 0.0], abs=1e-4)


def test_a_categorical_policy_has_the_multiplier_that_just_keeps_its_constraint() -> None:
    """Maximise E[A] + T H(p) over laws p on five things, subject to E[B] >= 1.

    The best law for a multiplier is softmax((A + lambda B) / T). Where E[B] of it is 1 is found by
    bisection; here the law of an update follows from the reward's scores, as in its limit RL does,
    and is drawn in 10,000 evenly spaced quantiles, so that E[B] is off by less than 2e-4.
    """
    things = torch.tensor([[3.0, 0.0], [2.0, 0.5], [1.0, 1.0], [0.5, 1.5], [0.0, 2.0]])
    temperature = 0.5

    def law(multiplier: float) -> Tensor:
        a, b = things.double().T
        return ((a + multiplier * b) / temperature).softmax(0)

    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        enough = float(law(middle) @ things[:, 1].double()) >= 1
        low, high = (low, middle) if enough else (middle, high)

    def value(samples: Samples, prompts: Sequence[str]) -> Tensor:
        return samples.values[:, 0]

    reward = Constrained(value, [Constraint(first, 1.0, rate=0.5)])
    quantiles = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    for _ in range(150):
        scores = reward(Vectors(things), [""] * 5)
        law_now = (scores.double() / temperature).softmax(0)
        drawn = things[torch.searchsorted(law_now.cumsum(0), quantiles).clamp(max=4)]
        with adapting(reward):
            reward(Vectors(drawn), [""] * len(drawn))
    assert low > 0.5
    assert float(reward.multipliers) == pytest.approx(low, abs=1e-3)


def test_a_run_resumes_with_its_multipliers_and_moments(tmp_path: Path) -> None:
    def reward() -> Reward:
        # Well above the brightness of what an untrained model draws, so that it binds.
        constraint = Constraint(brightness, 0.9, rate=3.0)
        return Constrained(RunningStandardised(redness), [constraint])

    once = {"checkpoint_every": 1}
    straight, last = reward(), reward()
    small_runs.run(tmp_path, "straight", 2, reward=straight, **once)
    small_runs.run(tmp_path, "resumed", 1, reward=reward(), **once)
    small_runs.run(tmp_path, "resumed", 2, reward=last, resume="latest", **once)
    runs = [tmp_path / "straight", tmp_path / "resumed"]
    # The interrupted run evaluates once more, at what was to be its end.
    lines, again = ([m for m in small_runs.metrics(r) if m["kind"] == "update"] for r in runs)
    assert lines == again and len(lines) == 2
    weights, again = map(small_runs.weights, runs)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    state = adaptive_tensors(last)
    assert float(state["reward/multipliers"]) > 1.0
    assert float(state["reward.objective/moments"][0]) == 2 * 9
    for name, tensor in adaptive_tensors(straight).items():
        assert torch.equal(state[name], tensor)


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="rate of a constraint is above 0, got 0"):
        Constraint(first, 1.0, 0.0)
    with pytest.raises(ValueError, match="no constraints"):
        Constrained(zeroth, [])
