"""A chain's numbers are its own, whatever batch it is in."""

import pytest
import torch

from diffreward.random import rand, randn, stream


@pytest.mark.parametrize("draw", [rand, randn])
def test_the_same_keys_give_the_same_numbers_and_others_do_not(draw) -> None:
    one, again = draw((1000,), stream(7, "noise", 3)), draw((1000,), stream(7, "noise", 3))
    assert torch.equal(one, again)
    for other in (stream(8, "noise", 3), stream(7, "noise", 4), stream(7, "noise", "3"), stream(7)):
        numbers = torch.stack([one, draw((1000,), other)])
        # The correlation of 1000 independent pairs has standard error 0.032.
        assert abs(torch.corrcoef(numbers)[0, 1]) < 4 * 0.032


@pytest.mark.parametrize("draw", [rand, randn])
def test_a_row_does_not_depend_on_its_batch(draw) -> None:
    sources = [stream(0, i) for i in range(5)]
    batch = draw((5, 3, 2), sources)
    for i in range(5):
        assert torch.equal(draw((1, 3, 2), [stream(0, i)])[0], batch[i])


def test_successive_draws_differ() -> None:
    sources = [stream(0), stream(1)]
    assert not torch.equal(randn((2, 4), sources), randn((2, 4), sources))


def test_the_wrong_number_of_generators_is_refused() -> None:
    with pytest.raises(ValueError, match="2 generators for 3 rows"):
        randn((3, 4), [stream(0), stream(1)])


def test_no_rows_need_no_generators() -> None:
    assert randn((0, 4), []).shape == (0, 4)


def test_dtypes_and_laws() -> None:
    uniform, normal = rand((100_000,), stream(0)), randn((100_000,), stream(0))
    assert uniform.dtype == torch.float64 and normal.dtype == torch.float32
    assert uniform.min() >= 0 and uniform.max() < 1
    # Standard errors: sqrt(1 / 12 / n) = 0.0009 and sqrt(1 / n) = 0.0032.
    assert abs(uniform.mean() - 0.5) < 4 * 0.0009
    assert abs(normal.mean()) < 4 * 0.0032


def test_none_is_the_global_generator() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = torch.randn(4)
        torch.manual_seed(3)
        assert torch.equal(randn((4,), None), expected)
