"""The Vendi score: sets whose number of kinds is known, published code, and its derivatives."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from diffreward.random import stream
from diffreward.rewards.vendi import Vendi
from diffreward.samples import Samples, Vectors

ORDERS = [0.5, 1.0, 2.0, 3.0, math.inf]


def itself(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return samples.values[:, None]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed), dtype=torch.float64)


def waves(n: int, d: int, start: int) -> Tensor:
    """Numbers without a pattern, which are the same for every version of torch."""
    i = torch.arange(start, start + n * d, dtype=torch.float64)
    return torch.sin(i**2 / 3).reshape(n, d) * torch.linspace(0.5, 2, d, dtype=torch.float64)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_counts_kinds_that_have_nothing_in_common(order: float, dtype: torch.dtype) -> None:
    kinds = torch.eye(6, dtype=dtype)[:4]
    for copies in (1, 3):
        rows = 5 * kinds.repeat(copies, 1)
        assert float(Vendi(itself, order).value(rows)) == pytest.approx(4, rel=1e-5)
    assert float(Vendi(itself, order).value(kinds[:1].repeat(7, 1))) == pytest.approx(1, rel=1e-5)


def test_kinds_of_unequal_number_count_by_their_entropy() -> None:
    """Shares 1/2, 1/4, 1/4: exp of Renyi entropies."""
    rows = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 2]]
    shares = [0.5, 0.25, 0.25]
    expected = {
        0.5: sum(math.sqrt(p) for p in shares) ** 2,
        1.0: math.exp(-sum(p * math.log(p) for p in shares)),
        2.0: 1 / sum(p**2 for p in shares),
        3.0: sum(p**3 for p in shares) ** (-1 / 2),
        math.inf: 2.0,
    }
    for order, value in expected.items():
        assert float(Vendi(itself, order).value(rows)) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_weights_are_shares(order: float) -> None:
    rows, weights = draw(3, 5), torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    found = Vendi(itself, order).value(rows, weights)
    expected = Vendi(itself, order).value(rows[[0, 0, 1, 2]])
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(
    ("n", "d", "there"),
    [
        (7, 12, [6.169096142337697, 5.646555305114401, 5.075715752825328, 3.481527283316267]),
        (30, 4, [3.487493520342768, 3.1902550162086087, 2.8961789527074817, 2.2946237471924538]),
    ],
)
def test_it_is_what_published_code_computes(n: int, d: int, there: list[float]) -> None:
    """The values are those of vendi-score 0.0.3, which for orders below 1 counts rounded zeros."""
    for order, expected in zip([0.5, 1.0, 2.0, math.inf], there, strict=True):
        found = float(Vendi(itself, order).value(waves(n, d, 0)))
        assert found == pytest.approx(expected, rel=1e-6 if order < 1 else 1e-12)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("n", "d"), [(4, 6), (6, 4)])
def test_its_derivatives_are_those_of_finite_differences(order: float, n: int, d: int) -> None:
    reward, rows, e = Vendi(itself, order), draw(n, d).requires_grad_(), 1e-6
    assert torch.autograd.gradcheck(reward.value, rows)
    equal, one = torch.full((n,), 1 / n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    value = reward.value(rows.detach(), equal)
    slopes = torch.stack(
        [(reward.value(rows.detach(), (1 - e) * equal + e * w) - value) / e for w in one]
    )
    found = reward.credits(rows[:, None])
    assert torch.allclose(found, slopes - slopes.mean(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("order", [0.3, *ORDERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_samples_are_equal_the_gradient_is_finite(order: float, dtype: torch.dtype) -> None:
    rows = draw(3, 6).to(dtype).repeat(2, 1).requires_grad_()
    (slope,) = torch.autograd.grad(Vendi(itself, order).value(rows), rows)
    assert slope.isfinite().all()
    # Equal samples cannot be told apart, and scale does not matter.
    assert torch.allclose(slope[:3], slope[3:], atol=1e-4)
    assert torch.allclose((slope * rows).sum(1), torch.zeros(6, dtype=dtype), atol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("credit", ["influence", "leave_one_out"])
def test_a_rare_kind_contributes_most(order: float, credit: str) -> None:
    rows = torch.eye(4).double()[[0, 0, 0, 0, 1]] + 1e-3 * draw(5, 4)
    credits = Vendi(itself, order, credit).credits(rows[:, None])
    assert credits.argmax() == 4 and credits[4] > 0


def test_leaving_out_one_is_the_score_without_it() -> None:
    reward, rows = Vendi(itself, 1.0), draw(5, 2, 6)
    found = reward.values_without_each(rows, rows[0, :0])
    expected = [reward.value(torch.cat([rows[:i], rows[i + 1 :]]).flatten(0, 1)) for i in range(5)]
    assert torch.allclose(found, torch.stack(expected))


def test_the_scores_of_a_set_are_its_score_and_its_samples_parts() -> None:
    rows = draw(20, 6)
    rows[:10] = rows[0]
    reward = Vendi(itself)
    scores = reward(Vectors(rows), [""] * 20)
    assert float(scores.mean()) == pytest.approx(float(reward.value(rows)), rel=1e-6)
    assert float(scores[:10].max()) < float(scores[10:].min())


def test_an_order_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 0"):
        Vendi(itself, 0)
