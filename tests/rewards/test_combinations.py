"""Several rewards as one: against closed forms, in the limits, and where a part has no score."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.reward import Reward, RewardFunction
from diffreward.rewards.combinations import Gated, Product, SoftMinimum, WorstCase
from diffreward.rewards.uncertainty import PessimisticEnsemble
from diffreward.samples import Samples, Vectors

ROWS = torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0], [0.5, -1.0, 0.25], [0.0, 4.0, 4.0]])
PROMPTS = [""] * 4

COMBINATIONS: dict[str, Callable[[Sequence[RewardFunction]], Reward]] = {
    "worst case": lambda parts: WorstCase(parts),
    "soft minimum": lambda parts: SoftMinimum(parts, 0.5),
    "product": lambda parts: Product(parts),
    "gated": lambda parts: Gated(parts[0], parts[1], threshold=0.3, otherwise=-2.0),
}


def column(number: int) -> RewardFunction:
    def reward(samples: Samples, prompts: Sequence[str]) -> Tensor:
        return samples.values[:, number]

    return reward


PARTS = [column(0), column(1), column(2)]


def scores(reward: Reward, rows: Tensor = ROWS) -> Tensor:
    return reward(Vectors(rows), [""] * len(rows))


@pytest.mark.parametrize("make", COMBINATIONS.values(), ids=COMBINATIONS)
def test_the_contract_of_a_reward_is_kept(make: Callable[..., Reward]) -> None:
    check_reward(make(PARTS), Vectors(ROWS), PROMPTS)


@pytest.mark.parametrize("make", COMBINATIONS.values(), ids=COMBINATIONS)
def test_no_score_of_a_part_is_no_score(make: Callable[..., Reward]) -> None:
    for part in range(2):
        rows = ROWS.clone()
        rows[1, part] = math.nan
        rows[2, part] = math.inf
        assert scores(make(PARTS[:2]), rows).isnan().tolist() == [False, True, True, False]


@pytest.mark.parametrize("make", COMBINATIONS.values(), ids=COMBINATIONS)
def test_a_better_part_never_makes_a_sample_worse(make: Callable[..., Reward]) -> None:
    rows = torch.randn(200, 3, generator=stream(0)).clamp(min=-1.9)
    better = rows + torch.rand(200, 3, generator=stream(1))
    assert (scores(make(PARTS), better) >= scores(make(PARTS), rows) - 1e-6).all()


@pytest.mark.parametrize("make", COMBINATIONS.values(), ids=COMBINATIONS)
def test_the_gradient_is_that_of_the_score(make: Callable[..., Reward]) -> None:
    reward = make(PARTS)
    rows = torch.tensor([[0.5, 1.5, 2.5], [2.0, 0.1, 1.0], [1.0, 2.0, -0.5]]).double()
    assert torch.autograd.gradcheck(
        # Scores are float32, so that differences of them need a wide step.
        lambda x: scores(reward, x),
        rows.requires_grad_(),
        eps=1e-2,
        atol=1e-2,
    )


def test_the_worst_case_is_the_least_reward_and_pulls_only_at_it() -> None:
    rows = ROWS.clone().requires_grad_()
    found = scores(WorstCase(PARTS), rows)
    assert found.tolist() == [1.0, 2.0, -1.0, 0.0]
    found.sum().backward()
    assert rows.grad is not None
    assert rows.grad[[0, 2, 3]].tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert torch.allclose(rows.grad[1], torch.full((3,), 1 / 3))


def test_a_soft_minimum_is_its_formula() -> None:
    b = 0.7
    expected = [-b * math.log(sum(math.exp(-r / b) for r in row) / 3) for row in ROWS.tolist()]
    assert scores(SoftMinimum(PARTS, b)).tolist() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_of_a_soft_minimum_is_shared_by_softmax() -> None:
    rows = ROWS.clone().requires_grad_()
    scores(SoftMinimum(PARTS, 0.7), rows).sum().backward()
    assert rows.grad is not None
    assert torch.allclose(rows.grad, (-ROWS / 0.7).softmax(1))


def test_a_cold_soft_minimum_is_the_least_reward() -> None:
    assert torch.allclose(scores(SoftMinimum(PARTS, 1e-6)), scores(WorstCase(PARTS)), atol=1e-5)


def test_a_hot_soft_minimum_is_the_mean_less_the_variance() -> None:
    """The next term of the expansion is the third central moment over 6 b^2."""
    rows, b = torch.randn(50, 3, generator=stream(2)), 30.0
    found, mean = scores(SoftMinimum(PARTS, b), rows), rows.mean(1)
    second = (rows - mean[:, None]).square().mean(1)
    third = (rows - mean[:, None]).pow(3).mean(1)
    pessimistic = scores(PessimisticEnsemble(PARTS, 1 / (2 * b)), rows)
    assert torch.allclose(pessimistic, mean - second / (2 * b), atol=1e-6)
    assert torch.allclose(found - pessimistic, third / (6 * b**2), atol=3e-5)
    assert (found - pessimistic).abs().max() > 2e-4
    assert torch.allclose(scores(SoftMinimum(PARTS, 1e8), rows), mean, atol=1e-6)


@pytest.mark.parametrize("b", [1e-30, 1e-3, 1.0, 1e3, 1e30])
def test_a_soft_minimum_of_equals_is_what_they_are(b: float) -> None:
    rows = torch.tensor([[1e4] * 3, [-7.0] * 3, [0.0] * 3])
    assert scores(SoftMinimum(PARTS, b), rows).tolist() == [1e4, -7.0, 0.0]


def test_a_soft_minimum_lies_between_the_least_and_the_mean() -> None:
    rows = 100 * torch.randn(100, 3, generator=stream(3))
    found = [scores(SoftMinimum(PARTS, b), rows) for b in (0.1, 10.0, 1000.0)]
    ordered = torch.stack([rows.amin(1), *found, rows.mean(1)])
    assert (ordered.diff(dim=0) >= -1e-4).all()


@pytest.mark.parametrize("b", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_is_above_zero_and_finite(b: float) -> None:
    with pytest.raises(ValueError, match="temperature is above 0"):
        SoftMinimum(PARTS, b)


def test_a_product_multiplies_and_two_negative_scores_make_no_good_one() -> None:
    rows = torch.tensor([[0.5, 0.5, 0.2], [-1.0, -2.0, 3.0], [1.0, -0.1, 1.0], [1.0, 1.0, 0.0]])
    assert scores(Product(PARTS), rows).tolist() == pytest.approx([0.05, 0.0, 0.0, 0.0])


def test_a_product_has_a_gradient_where_one_factor_is_zero() -> None:
    rows = torch.tensor([[0.5, 0.0, 0.4]], requires_grad=True)
    scores(Product(PARTS), rows).sum().backward()
    assert rows.grad is not None
    assert rows.grad[0].tolist() == pytest.approx([0.0, 0.2, 0.0])


def test_a_gate_lets_a_reward_count_above_its_threshold_only() -> None:
    rows = torch.tensor([[5.0, 0.4], [6.0, 0.5], [7.0, 0.51], [-8.0, 9.0]])
    found = scores(Gated(column(0), column(1), threshold=0.5, otherwise=-10.0), rows)
    assert found.tolist() == [-10.0, -10.0, 7.0, -8.0]


def test_a_gate_can_leave_samples_without_a_score() -> None:
    rows = torch.tensor([[5.0, 0.4], [7.0, 0.6]])
    found = scores(Gated(column(0), column(1), 0.5, math.nan), rows)
    assert found.isnan().tolist() == [True, False]


def test_a_shut_gate_gives_no_gradient() -> None:
    rows = torch.tensor([[5.0, 0.4], [7.0, 0.6]], requires_grad=True)
    scores(Gated(column(0), column(1), 0.5, 0.0), rows).sum().backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [[0.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    "make", [WorstCase, Product, lambda parts: SoftMinimum(parts, 1.0)], ids=["min", "*", "soft"]
)
def test_nothing_cannot_be_combined(make: Callable[..., Reward]) -> None:
    with pytest.raises(ValueError, match="no rewards to combine"):
        make([])
