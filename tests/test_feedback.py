"""Advantages and pairs, against what is worked out by hand."""

import torch

from diffreward.feedback import advantages, all_pairs, best_and_worst, group_mean

NAN = float("nan")
SCORES = torch.tensor([1.0, 3.0, 10.0, 10.0, NAN, 7.0])
GROUPS = torch.tensor([0, 0, 4, 4, 4, 9])


def test_group_means_leave_out_samples_without_a_score() -> None:
    assert group_mean(SCORES, GROUPS).tolist() == [2, 2, 10, 10, 10, 7]


def test_advantages_are_relative_to_the_group() -> None:
    assert advantages(SCORES, GROUPS, "none").tolist() == [-1, 1, 0, 0, 0, 0]
    # The first group's standard deviation is 1; the second has none and must not become noise.
    assert advantages(SCORES, GROUPS, "group").tolist() == [-1, 1, 0, 0, 0, 0]
    # Over the batch: the root mean square of -1, 1, 0, 0, 0 is sqrt(2 / 5).
    expected = torch.tensor([-1.0, 1, 0, 0, 0, 0]) / (2 / 5) ** 0.5
    torch.testing.assert_close(advantages(SCORES, GROUPS, "batch"), expected)


def test_rounding_noise_among_equal_scores_is_no_advantage() -> None:
    scores = torch.full((4,), 0.3) + torch.tensor([0, 1e-8, 0, -1e-8])
    assert not advantages(scores, torch.zeros(4, dtype=torch.long), "group").any()


def test_advantages_do_not_change_with_a_constant_added_to_the_reward() -> None:
    shifted = advantages(SCORES + 5, GROUPS, "group")
    torch.testing.assert_close(shifted, advantages(SCORES, GROUPS, "group"))


def test_all_pairs_stay_within_groups_and_skip_ties_and_missing_scores() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, NAN])
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    pairs = all_pairs(scores, groups)
    found = set(zip(pairs.winner.tolist(), pairs.loser.tolist(), strict=True))
    assert found == {(1, 0), (1, 2), (2, 0)}
    margins = dict(zip(found, [0.0] * 3, strict=True)) | {
        (w, lo): m
        for w, lo, m in zip(
            pairs.winner.tolist(), pairs.loser.tolist(), pairs.margin.tolist(), strict=True
        )
    }
    assert margins == {(1, 0): 2, (1, 2): 1, (2, 0): 1}
    # Mean over the 3 pairs of the first group, then over 2 groups, one of them without a pair.
    torch.testing.assert_close(pairs.weight, torch.full((3,), 1 / 6))


def test_best_and_worst_gives_one_pair_per_group_that_has_one() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, NAN])
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    pairs = best_and_worst(scores, groups)
    assert (pairs.winner.tolist(), pairs.loser.tolist()) == ([1], [0])
    assert pairs.weight.tolist() == [0.5]
    none = best_and_worst(torch.ones(3), torch.zeros(3, dtype=torch.long))
    assert len(none.winner) == 0 and none.margin.shape == (0,)
