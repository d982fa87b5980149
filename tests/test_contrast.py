"""Positive and negative sets, held against all that there are."""

from itertools import product

import pytest
import torch
from torch import Tensor

from diffreward.contrast import Everyone, contrast, halves
from diffreward.feedback import matched
from diffreward.random import stream

GROUPS = torch.arange(5).repeat_interleave(2)


def additive(scores: Tensor):
    return lambda rows: float(scores[rows].mean())


def spread(points: Tensor):
    """A value that is no sum: the determinant of the covariance, with a target for the mean."""

    def value(rows: Tensor) -> float:
        chosen = points[rows]
        far = (chosen.mean(0) - 0.5).square().sum()
        return float(10 + torch.cov(chosen.T).det() - far)

    return value


def brute_force(value, first: Tensor, second: Tensor) -> float:
    choices = product([False, True], repeat=len(first))
    return max(value(torch.where(torch.tensor(choice), second, first)) for choice in choices)


def test_halves_have_as_many_samples_of_each_prompt() -> None:
    groups = torch.tensor([0, 0, 0, 0, 4, 4, 4, 7])
    scored = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1]).bool()
    first, second = halves(groups, scored)
    assert first.tolist() == [0, 4]
    assert second.tolist() == [1, 5]


@pytest.mark.parametrize("passes", [0, 2])
def test_for_a_mean_of_scores_the_better_of_each_pair_is_positive(passes: int) -> None:
    scores = torch.randn(10, generator=stream(0))
    first, second = halves(GROUPS, scores.isfinite())
    signs = contrast(additive(scores), scores, (first, second), True, passes, stream(1))
    assert torch.equal(signs[first], (scores[first] - scores[second]).sign())
    assert torch.equal(signs[second], -signs[first])


def test_unpaired_the_better_half_of_all_is_positive() -> None:
    scores = torch.randn(10, generator=stream(0))
    sets = halves(GROUPS, scores.isfinite())
    signs = contrast(additive(scores), scores, sets, False, 0, stream(1))
    assert torch.equal(signs > 0, scores > scores.median())


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("passes", [0, 1])
def test_the_positive_set_is_never_worse_than_those_it_is_made_from(
    paired: bool, passes: int
) -> None:
    for seed in range(20):
        points = torch.randn(10, 2, generator=stream(seed))
        value, sets = spread(points), halves(GROUPS, torch.ones(10).bool())
        # Credits that say nothing: the guess by them is not trusted.
        credits = torch.randn(10, generator=stream(seed, "credits"))
        signs = contrast(value, credits, sets, paired, passes, stream(1))
        assert value((signs > 0).nonzero().squeeze(1)) >= max(value(each) for each in sets)
        assert (signs > 0).sum() == (signs < 0).sum() == 5


@pytest.mark.parametrize("n", [3, 6, 10])
def test_exchanges_come_within_two_percent_of_the_best_of_all_sets(n: int) -> None:
    groups = torch.arange(n).repeat_interleave(2)
    for seed in range(10):
        points = torch.randn(2 * n, 2, generator=stream(seed))
        value, sets = spread(points), halves(groups, torch.ones(2 * n).bool())
        signs = contrast(value, torch.zeros(2 * n), sets, True, 4, stream(1))
        found = value((signs > 0).nonzero().squeeze(1))
        assert found >= 0.98 * brute_force(value, *sets)


def test_samples_without_a_score_are_in_neither_set() -> None:
    scores = torch.randn(10, generator=stream(0))
    scores[3] = torch.nan
    sets = halves(GROUPS, scores.isfinite())
    signs = contrast(additive(scores), scores, sets, True, 1, stream(1))
    assert signs[2:4].tolist() == [0, 0]
    assert (signs != 0).sum() == 8


def test_pairs_are_matched_within_a_group() -> None:
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, 0.0])
    scores = torch.arange(6.0)
    pairs = matched(signs, scores, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert pairs.winner.tolist() == [0, 3]
    assert pairs.loser.tolist() == [1, 2]
    assert pairs.weight.tolist() == pytest.approx([1 / 3, 1 / 3])
    anyhow = matched(signs, scores, torch.zeros(6).long())
    assert anyhow.winner.tolist() == [0, 3]
    assert anyhow.loser.tolist() == [1, 2]


def test_one_process_gathers_its_own_samples() -> None:
    rows = torch.randn(4, 1, 2, generator=stream(0))
    everyone = Everyone.gathered(rows, torch.arange(4.0), torch.tensor([5, 5, 6, 6]))
    assert everyone.own == slice(0, 4)
    assert torch.equal(everyone.rows, rows)
