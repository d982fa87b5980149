"""Fidelity and coverage: points on a line by hand, published code, and what each sample covers."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from diffreward.random import stream
from diffreward.rewards.coverage import Coverage, Density, Precision, Recall
from diffreward.samples import Samples, Vectors
from diffreward.set_reward import SetReward

# On a line, with the distances to the nearest other one 1, 1, 2, 4.
LINE = torch.tensor([[0.0], [1.0], [3.0], [7.0]]).double()
# In the neighbourhoods of none, of the first two, of the second, and of the third and fourth.
SET = torch.tensor([[-1.0], [0.5], [1.5], [4.5]]).double()


def itself(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return samples.values[:, None]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed), dtype=torch.float64)


def test_a_row_on_the_edge_of_a_neighbourhood_is_outside() -> None:
    assert Precision(itself, LINE, 1).reference.radii.tolist() == [1, 1, 2, 4]
    holding = Precision(itself, LINE, 1).reference.holding(SET)
    assert holding.int().T.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


def test_points_on_a_line_are_counted_by_hand() -> None:
    """The set's own distances to the nearest are 1.5, 1, 1, 3: 0, 1, 3 and 7 are in what balls?"""
    assert float(Precision(itself, LINE, 1).value(SET)) == 3 / 4
    assert float(Density(itself, LINE, 1).value(SET)) == 6 / 4
    assert float(Coverage(itself, LINE, 1).value(SET)) == 1
    assert float(Coverage(itself, LINE, 1).value(SET[:3])) == 3 / 4
    # -1 +- 1.5 and 0.5 +- 1 hold 0; 0.5 and 1.5 +- 1 hold 1; 4.5 +- 3 holds 3 and 7.
    assert float(Recall(itself, LINE, 1).value(SET)) == 1
    # Without 4.5 nothing reaches 3 and 7.
    assert float(Recall(itself, LINE, 1).value(SET[:3])) == 2 / 4


def waves(n: int, d: int, start: int) -> Tensor:
    """Numbers without a pattern, which are the same for every version of torch."""
    i = torch.arange(start, start + n * d, dtype=torch.float64)
    return torch.sin(i**2 / 3).reshape(n, d) * torch.linspace(0.5, 2, d, dtype=torch.float64)


@pytest.mark.parametrize(
    ("k", "there"),
    [(1, [0.54, 43 / 70, 0.74, 24 / 70]), (2, [0.78, 65 / 70, 0.76, 0.6])],
)
def test_they_are_what_published_code_computes(k: int, there: list[float]) -> None:
    """The values are those of prdc 0.2."""
    rows, reference = waves(50, 8, 0), waves(70, 8, 5000) + 0.3
    kinds = (Precision, Recall, Density, Coverage)
    found = [float(kind(itself, reference, k).value(rows)) for kind in kinds]
    assert found == pytest.approx(there, abs=1e-12)


def test_who_is_in_neighbourhoods_gets_the_credit_of_fidelity() -> None:
    rows = SET[:, None]
    counts = torch.tensor([0, 2, 2, 2]).double()
    assert torch.allclose(Density(itself, LINE, 1).credits(rows), counts - 1.5)
    hits = torch.tensor([0, 1, 1, 1]).double()
    assert torch.allclose(Precision(itself, LINE, 1).credits(rows), hits - 0.75)


def test_what_several_cover_is_shared_and_what_one_covers_is_its_own() -> None:
    """1 is covered by 0.5 and 1.5, 3 by 1.5 and 4.5."""
    rows = SET[:, None]
    shares = torch.tensor([0, 1.5, 1, 1.5]).double()
    assert torch.allclose(Coverage(itself, LINE, 1).credits(rows), shares - 1)
    without = Coverage(itself, LINE, 1).values_without_each(rows, SET[:0])
    assert without.tolist() == [1, 3 / 4, 1, 3 / 4]


def test_what_the_past_covers_is_shared_with_it() -> None:
    rows, past = SET[:, None], torch.tensor([[0.5]]).double()
    found = Coverage(itself, LINE, 1).influences(rows, past)
    assert torch.allclose(found, torch.tensor([0, 1 / 2 + 1 / 3, 1 / 3 + 1 / 2, 1.5]).double())
    without = Coverage(itself, LINE, 1).values_without_each(rows, past)
    assert without.tolist() == [1, 1, 1, 3 / 4]


@pytest.mark.parametrize("kind", [Coverage, Recall])
@pytest.mark.parametrize("r", [1, 3])
def test_leaving_out_each_is_brute_force(kind: type[SetReward], r: int) -> None:
    reward, rows, past = kind(itself, draw(40, 4, seed=1), 3), draw(8, r, 4), draw(3, 4, seed=2)
    found = reward.values_without_each(rows, past)
    expected = [
        reward.value(torch.cat([rows[:i].flatten(0, 1), rows[i + 1 :].flatten(0, 1), past]))
        for i in range(8)
    ]
    assert torch.allclose(found, torch.stack(expected))
    assert len(found.unique()) > 1


@pytest.mark.parametrize("kind", [Coverage, Recall])
def test_the_shares_of_all_add_up_to_the_value(kind: type[SetReward]) -> None:
    reward, rows = kind(itself, draw(40, 4, seed=1), 3), draw(10, 2, 4)
    shares = reward.influences(rows, rows[0, :0])
    assert float(shares.mean()) == pytest.approx(float(reward.value(rows.flatten(0, 1))))


@pytest.mark.parametrize(
    "kind", [Precision, Density, Coverage, Recall], ids=lambda kind: kind.__name__
)
def test_the_mean_of_the_scores_is_the_value(kind: Callable[..., SetReward]) -> None:
    reward, rows = kind(itself, draw(40, 4, seed=1)), draw(12, 4)
    scores = reward(Vectors(rows), [""] * 12)
    assert float(scores.mean()) == pytest.approx(float(reward.value(rows)), rel=1e-6)
    assert float(scores.std()) > 0


def test_a_set_without_neighbours_has_no_recall() -> None:
    reward = Recall(itself, LINE, neighbours=2)
    assert reward(Vectors(SET[:2]), [""] * 2).isnan().all()
    assert reward(Vectors(SET), [""] * 4).isfinite().all()


def test_what_cannot_be_is_refused() -> None:
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"got {k} neighbours"):
            Coverage(itself, LINE, k)
    with pytest.raises(ValueError, match="has 1 features, the embedding gives 2"):
        Coverage(itself, LINE, 1)(Vectors(draw(6, 2)), [""] * 6)
