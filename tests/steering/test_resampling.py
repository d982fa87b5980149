"""Every scheme against the law of its offspring, and against what rounding can do to it."""

import math

import pytest
import torch
from torch import Tensor

from diffreward.random import stream
from diffreward.steering.resampling import (
    Resampling,
    _inverse_cdf,
    multinomial,
    residual,
    ssp,
    stratified,
    systematic,
    winner,
)

SCHEMES = {
    "multinomial": multinomial,
    "residual": residual,
    "stratified": stratified,
    "systematic": systematic,
    "ssp": ssp,
    "winner": winner,
}
WEIGHTS = torch.tensor([0.02, 0.3, 0.0, 0.11, 0.25, 0.32], dtype=torch.float64)
SYSTEMS, N = 20_000, len(WEIGHTS)
EXPECTED = N * WEIGHTS


def offspring(scheme: Resampling, weights: Tensor = WEIGHTS, systems: int = SYSTEMS) -> Tensor:
    ancestors = scheme(weights.expand(systems, -1), stream(0, "test"))
    return torch.nn.functional.one_hot(ancestors, len(weights)).sum(1).double()


def variance(name: str) -> Tensor:
    """Of the number of offspring of each particle, from the definition of the scheme."""
    fraction = EXPECTED - EXPECTED.floor()
    left = fraction.sum()
    return {
        "multinomial": EXPECTED * (1 - WEIGHTS),
        "residual": fraction * (1 - fraction / left),
        "systematic": fraction * (1 - fraction),  # floor or floor + 1
        "ssp": fraction * (1 - fraction),
        "winner": N**2 * WEIGHTS * (1 - WEIGHTS),  # N or 0
    }[name]


@pytest.mark.parametrize("name", SCHEMES)
def test_each_particle_has_n_w_offspring_on_average(name: str) -> None:
    counts = offspring(SCHEMES[name])
    assert (counts.sum(1) == N).all()
    # The standard error of a mean of 20,000 counts; 1e-12 where the count is certain.
    error = counts.std(0) / math.sqrt(SYSTEMS)
    assert ((counts.mean(0) - EXPECTED).abs() <= 4 * error + 1e-12).all()


@pytest.mark.parametrize("name", ["multinomial", "residual", "systematic", "ssp", "winner"])
def test_the_number_of_offspring_has_the_variance_of_its_scheme(name: str) -> None:
    squares = (offspring(SCHEMES[name]) - EXPECTED).square()
    error = squares.std(0) / math.sqrt(SYSTEMS)
    assert ((squares.mean(0) - variance(name)).abs() <= 4 * error + 1e-12).all()


@pytest.mark.parametrize("scheme", [systematic, ssp])
def test_systematic_and_ssp_stay_within_one_of_n_w(scheme: Resampling) -> None:
    for seed in range(5):
        weights = torch.rand(40, generator=stream(seed), dtype=torch.float64) ** 4
        counts = offspring(scheme, weights, systems=500)
        assert ((counts - 40 * weights / weights.sum()).abs() < 1).all()


def test_residual_gives_at_least_the_whole_part() -> None:
    assert (offspring(residual) >= EXPECTED.floor()).all()


def test_stratified_stays_within_two_of_n_w() -> None:
    assert ((offspring(stratified) - EXPECTED).abs() < 2).all()


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("dead", [[0], [5], [0, 1, 2], [3, 4, 5], [0, 1, 2, 4, 5]])
def test_dead_particles_are_never_chosen(name: str, dead: list[int]) -> None:
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.15, 0.2, 0.05]]).repeat(2000, 1)
    weights[:, dead] = 0
    ancestors = SCHEMES[name](weights, stream(1))
    assert not torch.isin(ancestors, torch.tensor(dead)).any()


def test_points_that_rounding_lifts_to_one_belong_to_the_last_living_particle() -> None:
    # (N - 1 + u) / N is 1 in float64 for u near 1, and no running sum exceeds 1: without care such
    # a point would go to the dead particle at the end, or beyond it.
    assert (4095 + (1 - 2**-53)) / 4096 == 1
    points = torch.tensor([[0.0, 1 - 2**-53, 1.0]], dtype=torch.float64)
    behind = torch.tensor([[0.5, 0.5, 0.0, 0.0]], dtype=torch.float64)
    assert _inverse_cdf(behind, points).tolist() == [[0, 1, 1]]
    assert _inverse_cdf(behind.flip(1), points).tolist() == [[2, 3, 3]]
    # 0.1f + ... + 0.1f falls short of 1, so that normalised weights leave room above their sum.
    short = torch.tensor([[0.1] * 10 + [0.0]]).double() * (1 - 1e-7)
    assert _inverse_cdf(short, points).tolist() == [[0, 9, 9]]


@pytest.mark.parametrize("name", ["residual", "stratified", "systematic", "ssp"])
def test_equal_weights_leave_every_particle_one_descendant(name: str) -> None:
    for n in (1, 3, 7, 64):
        ancestors = SCHEMES[name](torch.full((50, n), 1 / n), stream(0))
        assert (ancestors.sort(1).values == torch.arange(n)).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_a_system_draws_from_its_own_generator_only(name: str) -> None:
    weights = torch.rand(3, 8, generator=stream(0))
    together = SCHEMES[name](weights, [stream(1, g) for g in range(3)])
    alone = SCHEMES[name](weights[2:], [stream(1, 2)])
    assert torch.equal(together[2:], alone)


def test_only_the_winner_is_inconsistent() -> None:
    assert [name for name, scheme in SCHEMES.items() if not scheme.consistent] == ["winner"]
    assert (offspring(winner).amax(1) == N).all()


@pytest.mark.parametrize("bad", [[0.0, 0.0], [math.nan, 1.0], [-1.0, 2.0], [math.inf, 1.0]])
def test_impossible_weights_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        systematic(torch.tensor([bad]))
