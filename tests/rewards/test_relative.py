"""Scores relative to others: moments and ranks by hand, invariances, groups, processes."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffreward.adaptive import adapting, adaptive_tensors, load_adaptive
from diffreward.conformance import check_reward
from diffreward.feedback import advantages
from diffreward.random import stream
from diffreward.reward import Reward, RewardFunction
from diffreward.rewards.relative import (
    NormalisedSum,
    Ranked,
    RunningStandardised,
    Standardised,
)
from diffreward.samples import Samples, Vectors

PROMPTS = ["a", "b", "a", "b", "a", "c"]
SCORES = torch.tensor([1.0, 100.0, 2.0, 300.0, 6.0, 5.0])
GROUPS = torch.tensor([0, 1, 0, 1, 0, 2])


def column(number: int) -> RewardFunction:
    def reward(samples: Samples, prompts: Sequence[str]) -> Tensor:
        return samples.values[:, number]

    return reward


FIRST = column(0)
COUPLED: dict[str, Callable[[RewardFunction], Reward]] = {
    "standardised by prompt": lambda part: Standardised(part, "prompt"),
    "standardised by batch": lambda part: Standardised(part, "batch"),
    "ranked by prompt": lambda part: Ranked(part, "prompt"),
    "ranked by batch": lambda part: Ranked(part, "batch"),
    "normalised sum": lambda part: NormalisedSum([part, part], [1.0, 2.0]),
}


def scored(reward: Reward, scores: Tensor = SCORES, prompts: Sequence[str] = PROMPTS) -> Tensor:
    return reward(Vectors(scores.reshape(len(prompts), -1)), prompts)


@pytest.mark.parametrize("make", COUPLED.values(), ids=COUPLED)
def test_scores_follow_their_samples_and_are_the_same_again(make: Callable[..., Reward]) -> None:
    found = scored(make(FIRST))
    assert found.dtype == torch.float32 and torch.equal(found, scored(make(FIRST)))
    order = torch.randperm(6, generator=stream(0))
    shuffled = scored(make(FIRST), SCORES[order], [PROMPTS[i] for i in order.tolist()])
    assert torch.allclose(shuffled, found[order], atol=1e-6)


@pytest.mark.parametrize("make", COUPLED.values(), ids=COUPLED)
def test_what_has_no_score_changes_nothing_for_the_others(make: Callable[..., Reward]) -> None:
    found = scored(make(FIRST))
    more = torch.cat([SCORES, torch.tensor([math.nan, math.inf, math.nan])])
    with_failures = scored(make(FIRST), more, [*PROMPTS, "a", "b", "d"])
    assert with_failures.isnan().tolist() == [False] * 6 + [True] * 3
    assert torch.equal(with_failures[:6], found)


@pytest.mark.parametrize("make", COUPLED.values(), ids=COUPLED)
def test_unit_and_origin_of_a_reward_do_not_matter(make: Callable[..., Reward]) -> None:
    found = scored(make(FIRST))
    assert torch.allclose(scored(make(FIRST), 3 * SCORES - 7), found, atol=1e-5)


def test_standardised_by_prompt_is_the_advantage_of_a_group() -> None:
    found = scored(Standardised(FIRST))
    root = math.sqrt(14 / 3)
    assert found.tolist() == pytest.approx([-2 / root, -1, -1 / root, 1, 3 / root, 0])
    assert torch.allclose(found, advantages(SCORES, GROUPS, "group"), atol=1e-6)


def test_standardised_by_batch_has_mean_0_and_deviation_1() -> None:
    found = scored(Standardised(FIRST, "batch"))
    assert torch.allclose(found, (SCORES - SCORES.mean()) / SCORES.std(correction=0))
    assert float(found.mean()) == pytest.approx(0, abs=1e-6)
    assert float(found.std(correction=0)) == pytest.approx(1)


@pytest.mark.parametrize("scope", ["prompt", "batch"])
@pytest.mark.parametrize("value", [0.1, 1e4, -1e6])
def test_scores_that_are_equal_up_to_rounding_are_0(scope: str, value: float) -> None:
    rounding = 1e-7 * abs(value) * torch.tensor([0.0, 1.0, -1.0, 1.0])
    reward = Standardised(FIRST, scope)  # type: ignore[arg-type]
    found = scored(reward, value + rounding, ["a"] * 4)
    assert found.abs().max() < 1
    assert torch.equal(scored(reward, torch.full((4,), value), ["a"] * 4), torch.zeros(4))


def test_large_scores_lose_no_digits_to_their_mean() -> None:
    scores = torch.tensor([1000.125, 1000.25, 1000.375])
    assert scored(Standardised(FIRST), scores, ["a"] * 3).tolist() == pytest.approx(
        [-math.sqrt(1.5), 0, math.sqrt(1.5)], rel=1e-6
    )


def test_mean_and_deviation_are_constants_to_a_gradient() -> None:
    for reward, deviations in (
        (Standardised(FIRST), advantages_deviation()),
        (Standardised(FIRST, "batch"), SCORES.std(correction=0).expand(6)),
    ):
        values = SCORES.clone().requires_grad_()
        scored(reward, values).sum().backward()
        assert values.grad is not None
        assert torch.allclose(values.grad, 1 / deviations)


def advantages_deviation() -> Tensor:
    """The deviation of each sample's group; none of a group of one."""
    a, b = math.sqrt(14 / 3), 100.0
    return torch.tensor([a, b, a, b, a, math.inf])


def test_a_normalised_sum_adds_what_it_standardises() -> None:
    rows = torch.stack([SCORES, torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 1.0])], dim=1)
    found = scored(NormalisedSum([column(0), column(1)], [1.0, 0.5]), rows)
    second = advantages(rows[:, 1], GROUPS, "group")
    assert torch.allclose(found, advantages(SCORES, GROUPS, "group") + 0.5 * second, atol=1e-6)
    assert second.tolist() == pytest.approx([-(0.5**0.5), 0, -(0.5**0.5), 0, 2**0.5, 0])


def test_a_normalised_sum_tells_apart_what_normalising_a_sum_does_not() -> None:
    """The example of GDPO: two binary rewards, two samples per prompt.

    In "a" the second sample is better in one reward, in "b" in both. Both sums, (0, 1) and (0, 2),
    have advantages -1 and 1.
    """
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    prompts, groups = ["a", "a", "b", "b"], torch.tensor([0, 0, 1, 1])
    assert advantages(rows.sum(1), groups).tolist() == pytest.approx([-1, 1, -1, 1])
    found = scored(NormalisedSum([column(0), column(1)], [1.0, 1.0]), rows, prompts)
    assert found.tolist() == pytest.approx([-1, 1, -2, 2])
    assert advantages(found, groups, "batch").tolist() == pytest.approx(
        [x / math.sqrt(2.5) for x in (-1, 1, -2, 2)]
    )


def test_a_reward_without_a_score_leaves_the_sum_without() -> None:
    rows = torch.tensor([[1.0, math.nan], [2.0, 3.0], [3.0, 5.0]])
    found = scored(NormalisedSum([column(0), column(1)], [1.0, 1.0]), rows, ["a"] * 3)
    assert found.isnan().tolist() == [True, False, False]
    assert found[1:].tolist() == pytest.approx([0 - 1, math.sqrt(1.5) + 1])


def test_ranks_go_from_0_to_1_and_equals_share_theirs() -> None:
    scores = torch.tensor([5.0, 1.0, 5.0, -3.0, 9.0])
    expected = [0.625, 0.25, 0.625, 0.0, 1.0]
    for scope in ("prompt", "batch"):
        found = scored(Ranked(FIRST, scope), scores, ["a"] * 5)  # type: ignore[arg-type]
        assert found.tolist() == expected
    assert scored(Ranked(FIRST)).tolist() == [0, 0, 0.5, 1, 1, 0.5]
    assert scored(Ranked(FIRST, "batch")).tolist() == pytest.approx([0, 0.8, 0.2, 1, 0.6, 0.4])
    assert scored(Ranked(FIRST), torch.ones(6)).tolist() == [0.5] * 6


def test_only_the_order_matters_to_ranks() -> None:
    for scope in ("prompt", "batch"):
        reward = Ranked(FIRST, scope)  # type: ignore[arg-type]
        assert torch.equal(scored(reward, SCORES.log()), scored(reward))


def test_ranks_carry_no_gradient() -> None:
    assert not scored(Ranked(FIRST), SCORES.clone().requires_grad_()).requires_grad


def test_running_moments_are_those_of_all_updates_before() -> None:
    reward, rounds = RunningStandardised(FIRST), torch.randn(4, 6, generator=stream(1)) * 3 + 50
    for number, values in enumerate(rounds):
        before = rounds[:number].double().flatten()
        with adapting(reward):
            halves = scored(reward, values[:2], ["a"] * 2), scored(reward, values[2:], ["b"] * 4)
        found = torch.cat(halves)
        expected = (values - before.mean()) / before.std(correction=0) if number else values
        assert torch.allclose(found, expected.float(), atol=1e-4)
    n, mean, squares = reward.moments.tolist()
    whole = rounds.double()
    assert n == 24
    assert mean == pytest.approx(float(whole.mean()), rel=1e-14)
    assert squares / n == pytest.approx(float(whole.var(correction=0)), rel=1e-13)


def test_running_moments_keep_their_digits_far_from_zero() -> None:
    """In float32, or as a difference of sums of squares, nothing would be left of 1/4."""
    reward = RunningStandardised(FIRST)
    for _ in range(100):
        with adapting(reward):
            scored(reward, torch.tensor([4e6, 4e6 + 1]), ["a", "a"])
    assert float(reward.moments[2] / reward.moments[0]) == pytest.approx(0.25, rel=1e-9)


def test_running_moments_stand_still_in_evaluation_and_without_scores() -> None:
    reward = RunningStandardised(FIRST)
    with adapting(reward):
        scored(reward)
    moments = reward.moments
    scored(reward, -SCORES)
    with adapting(reward):
        pass
    with adapting(reward):
        found = scored(reward, torch.tensor([math.nan, math.inf]), ["a", "a"])
    assert torch.equal(reward.moments, moments)
    assert found.isnan().all()


def test_the_contract_of_a_reward_is_kept_by_running_moments() -> None:
    reward = RunningStandardised(FIRST)
    check_reward(reward, Vectors(SCORES[:, None]), PROMPTS)
    with adapting(reward):
        scored(reward)
    check_reward(reward, Vectors(SCORES[:, None]), PROMPTS)
    values = SCORES.clone().requires_grad_()
    scored(reward, values).sum().backward()
    assert values.grad is not None
    assert torch.allclose(values.grad, (1 / SCORES.std(correction=0)).expand(6))


def test_a_constant_reward_runs_to_0() -> None:
    reward = RunningStandardised(FIRST)
    for _ in range(3):
        with adapting(reward):
            scored(reward, torch.full((6,), 1234.5))
    assert scored(reward, torch.full((6,), 1234.5)).tolist() == [0.0] * 6


def test_moments_are_found_inside_a_sum() -> None:
    whole = 2 * RunningStandardised(FIRST) + 1.0
    with adapting(whole):
        scored(whole)
    fresh = 2 * RunningStandardised(FIRST) + 1.0
    load_adaptive(fresh, adaptive_tensors(whole))
    assert torch.equal(scored(fresh), scored(whole))


IN_EACH_PROCESS = """
import sys
import torch
from accelerate import Accelerator
from diffreward.adaptive import adapting
from diffreward.rewards.constrained import Constrained, Constraint
from diffreward.rewards.relative import Ranked, RunningStandardised, Standardised
from diffreward.samples import Vectors

def first(samples, prompts):
    return samples.values[:, 0]

state = Accelerator(cpu=True)
scores = torch.tensor([1.0, 100.0, 2.0, 300.0, float("nan"), 6.0, 5.0])
mine = [slice(0, 7)] if state.num_processes == 1 else [slice(0, 5), slice(5, 7)]
own = Vectors(scores[mine[state.process_index], None])
prompts = [""] * len(own)
running = RunningStandardised(first)
bounded = Constrained(first, [Constraint(first, 90.0, 0.5)])
for reward in (running, bounded):
    with adapting(reward):
        # One process may score in more pieces than the other.
        for rows in [slice(0, 3), slice(3, None)] if len(own) > 3 else [slice(None)]:
            reward(own[rows], prompts[rows])
found = [Ranked(first, "batch")(own, prompts), Standardised(first, "batch")(own, prompts)]
torch.save(
    {"scores": torch.stack(found), "moments": running.moments, "multiplier": bounded.multipliers},
    f"{sys.argv[1]}/{state.num_processes}-{state.process_index}.pt",
)
state.end_training()
"""


@pytest.mark.slow
def test_two_processes_see_what_one_does(tmp_path: Path) -> None:
    script = tmp_path / "each.py"
    script.write_text(IN_EACH_PROCESS)
    for number in ("1", "2"):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", number]
        subprocess.run(
            [sys.executable, *launcher, str(script), str(tmp_path)],
            check=True,
            env={**os.environ, "ACCELERATE_USE_CPU": "1"},
        )
    one, left, right = (torch.load(tmp_path / f"{n}.pt") for n in ("1-0", "2-0", "2-1"))
    both = torch.cat([left["scores"], right["scores"]], dim=1)
    torch.testing.assert_close(both, one["scores"], rtol=0, atol=0, equal_nan=True)
    assert float(one["multiplier"]) == 0.5 * (90 - 69)
    assert float(one["moments"][0]) == 6
    for name in ("moments", "multiplier"):
        assert torch.equal(left[name], one[name]) and torch.equal(right[name], one[name])
