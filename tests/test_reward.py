from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffreward.random import stream
from diffreward.reward import (
    Constant,
    Function,
    Reward,
    RewardError,
    RewardFunction,
    WeightedSum,
    name_of,
    score,
)
from diffreward.samples import Samples, Vectors, vectors

PROMPTS = ["one", "two", "three"]


class Coordinate(Reward):
    """One coordinate of each point."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return vectors(samples)[:, self.index]


def lengths(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return torch.tensor([float(len(prompt)) for prompt in prompts])


def points() -> Vectors:
    return Vectors(torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]))


A, B = Coordinate(0), Coordinate(1)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (2 * A + B - 1, [11.0, 23.0, 35.0]),
        (A * 0.5, [0.5, 1.0, 1.5]),
        (-A, [-1.0, -2.0, -3.0]),
        (B - A, [9.0, 18.0, 27.0]),
        (1 + A, [2.0, 3.0, 4.0]),
        (5 - A, [4.0, 3.0, 2.0]),
        (A + lengths, [4.0, 5.0, 8.0]),
        (A - lengths, [-2.0, -1.0, -2.0]),
        (3 * (A + 2 * (B - 1)), [57.0, 120.0, 183.0]),
        (sum([A, B], Constant(0.0)), [11.0, 22.0, 33.0]),
        (WeightedSum([lengths, A], [1.0, -1.0]), [2.0, 1.0, 2.0]),
        (Constant(4.0), [4.0, 4.0, 4.0]),
    ],
)
def test_rewards_are_added_and_multiplied_like_numbers(
    reward: Reward, expected: list[float]
) -> None:
    assert reward(points(), PROMPTS).tolist() == expected
    assert score(reward, points(), PROMPTS).dtype == torch.float32


def test_the_gradient_of_a_sum_is_the_sum_of_the_gradients() -> None:
    values = torch.randn(3, 2, generator=stream(0)).requires_grad_()
    score(2 * A - 0.5 * B + lengths, Vectors(values), PROMPTS).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[2.0, -0.5]] * 3


def test_each_reward_of_a_sum_is_held_to_the_contract() -> None:
    def wrong(samples: Samples, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(1)

    with pytest.raises(RewardError, match="wrong returned shape"):
        (A + wrong)(points(), PROMPTS)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0]])
def test_a_sum_has_one_weight_per_reward(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=f"2 rewards and {len(weights)} weights"):
        WeightedSum([A, B], weights)


def test_a_sum_has_a_reward() -> None:
    with pytest.raises(ValueError, match="0 rewards"):
        WeightedSum([], [])


def returning(value: object) -> RewardFunction:
    def reward(samples: Samples, prompts: Sequence[str]) -> Tensor:
        return value  # type: ignore[return-value]

    return reward


def test_no_score_stays_nan_and_an_infinite_score_becomes_nan() -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        scores = score(returning(torch.tensor([bad, 5.0, 6.0])), points(), ["", "", ""])
        assert scores.isnan().tolist() == [True, False, False]
        assert scores[1] == 5.0


def test_a_prompt_too_many_is_refused() -> None:
    with pytest.raises(ValueError, match="3 samples and 4 prompts"):
        score(returning(torch.ones(4)), points(), [""] * 4)


def test_a_masked_score_passes_no_gradient() -> None:
    values = torch.tensor([[0.0], [1.0]], requires_grad=True)
    reward: Callable[..., Tensor] = lambda samples, prompts: samples.values[:, 0].log()  # noqa: E731
    scores = score(reward, Vectors(values), ["", ""])
    scores.nansum().backward()
    assert scores.isnan().tolist() == [True, False]
    assert values.grad is not None
    assert values.grad[1].item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_scores_are_float32(dtype: torch.dtype) -> None:
    scores = score(returning(torch.tensor([0.5, 1.0, 2.0], dtype=dtype)), points(), PROMPTS)
    assert scores.dtype == torch.float32
    assert scores.tolist() == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0, 3.0], r"reward returned a list; .* shape \(3,\)"),
        (None, r"reward returned a NoneType"),
        (torch.tensor(1.0), r"reward returned shape \(\) for 3 samples"),
        (torch.zeros(3, 1), r"reward returned shape \(3, 1\) for 3 samples"),
        (torch.zeros(2), r"reward returned shape \(2,\) for 3 samples; .* shape \(3,\)"),
        (torch.zeros(3, dtype=torch.int64), r"reward returned torch\.int64"),
        (torch.zeros(3, dtype=torch.bool), r"reward returned torch\.bool"),
    ],
)
def test_what_is_no_score_per_sample_is_refused_by_name(value: object, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        score(returning(value), points(), PROMPTS)


def test_rewards_are_named_by_their_function_or_class() -> None:
    assert name_of(lengths) == "lengths"
    assert name_of(A) == "Coordinate"
    assert name_of(A + B) == "WeightedSum"


def test_a_function_in_a_file_or_a_module_is_a_reward(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def second(samples, prompts):\n    return samples.values[:, 1]\n")
    reward = Function(f"{file}:second")
    assert score(2 * reward - A, points(), PROMPTS).tolist() == [19.0, 38.0, 57.0]
    assert name_of(reward) == f"{file}:second"
    assert callable(Function("math:hypot"))


def test_a_function_that_is_not_there_is_reported_with_what_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def second(samples, prompts):\n    return samples.values[:, 1]\n")
    with pytest.raises(ValueError, match=r"no function first; it has \['second'\]"):
        Function(f"{file}:first")
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.py to take first from"):
        Function("nowhere.py:first")
    with pytest.raises(ValueError, match="'first' is neither"):
        Function("first")
