"""The sampler alone, on a hidden Markov model of two states whose evidence is a short sum."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from diffreward.random import rand, stream
from diffreward.steering.resampling import multinomial, ssp, systematic, winner
from diffreward.steering.smc import (
    Cloud,
    FeynmanKac,
    ParticleFilter,
    effective_sample_size,
    smc,
)

STAY, LOG_G, MOVES = 0.8, torch.tensor([0.0, -1.5], dtype=torch.float64), 6


@dataclass(frozen=True)
class Chain(FeynmanKac[Tensor]):
    """Starts in state 0 or 1 evenly; being in state 1 costs 1.5 nats at each time."""

    n: int
    seed: int = 0

    @property
    def num_moves(self) -> int:
        return MOVES

    def start(self) -> Tensor:
        return (rand((self.n,), stream(self.seed, 0)) < 0.5).long()

    def move(self, t: int, ancestors: Tensor) -> Tensor:
        leave = rand((self.n,), stream(self.seed, t)) >= STAY
        return torch.where(leave, 1 - ancestors, ancestors)

    def log_potential(self, t: int, x: Tensor) -> Tensor:
        return LOG_G[x]


def evidence() -> tuple[float, float]:
    """Z, and the probability of state 1 at the end, by the forward recursion."""
    kernel = torch.tensor([[STAY, 1 - STAY], [1 - STAY, STAY]], dtype=torch.float64)
    alpha = torch.tensor([0.5, 0.5], dtype=torch.float64) * LOG_G.exp()
    for _ in range(MOVES):
        alpha = (alpha @ kernel) * LOG_G.exp()
    return alpha.sum().item(), (alpha[1] / alpha.sum()).item()


def run(systems: int, particles: int, threshold: float = 0.5, scheme=systematic) -> Cloud[Tensor]:
    model = Chain(systems * particles)
    return smc(model, ParticleFilter(systems, particles, scheme, threshold, stream(1)))


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scheme", [systematic, multinomial, ssp], ids=["sys", "mult", "ssp"])
def test_evidence_is_unbiased_and_the_weighted_law_right(threshold, scheme) -> None:
    z, p1 = evidence()
    cloud = run(2000, 8, threshold, scheme)
    ratio = cloud.log_evidence.exp() / z
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(2000)
    # Weighting each system by its own evidence removes the bias of 8 particles altogether; the
    # error is that of a ratio of means (delta method).
    inside = (cloud.weights * cloud.x.reshape(2000, 8)).sum(1)
    share = (ratio * inside).sum() / ratio.sum()
    error = (ratio * (inside - share)).square().sum().sqrt() / ratio.sum()
    assert abs(share - p1) < 4 * error


def test_without_resampling_it_is_importance_sampling() -> None:
    cloud = run(3, 16, threshold=0.0)
    assert torch.equal(cloud.ancestors, torch.arange(16).expand(MOVES, 3, 16))
    assert torch.equal(cloud.origins(), torch.arange(16).expand(3, 16))
    direct = cloud.log_weights.logsumexp(1) - math.log(16)
    torch.testing.assert_close(cloud.log_evidence, direct)


def test_threshold_one_resamples_whenever_weights_differ_and_not_otherwise() -> None:
    cloud = run(500, 4, threshold=1.0)
    unequal = cloud.ess[:-1] < 4 - 1e-9
    moved = (cloud.ancestors != torch.arange(4)).any(2)
    assert unequal.any() and not unequal.all()
    assert not moved[~unequal].any()
    # Resampled particles start again with equal weights, and one move parts them by 1.5 at most.
    assert moved[unequal].double().mean() > 0.5
    spread = cloud.log_weights.amax(1) - cloud.log_weights.amin(1)
    assert spread.max() == 1.5


def test_only_degenerate_systems_are_resampled() -> None:
    cloud = run(500, 8, threshold=0.7)
    moved = (cloud.ancestors != torch.arange(8)).any(2)
    assert moved.any()
    assert not moved[cloud.ess[:-1] > 0.7 * 8].any()


def test_a_system_does_not_depend_on_the_others() -> None:
    sources = [stream(5, g) for g in range(3)]
    together = smc(Chain(24), ParticleFilter(3, 8, systematic, 1.0, sources))
    others = [stream(5, 0), stream(9), stream(8)]
    alone = smc(Chain(24), ParticleFilter(3, 8, systematic, 1.0, others))
    assert torch.equal(together.ancestors[:, 0], alone.ancestors[:, 0])


def test_origins_follow_the_ancestors_back() -> None:
    ancestors = torch.tensor([[[0, 0, 2]], [[2, 1, 1]]])
    zeros = torch.zeros(1, 3)
    cloud = Cloud(zeros, zeros, None, torch.ones(3, 1), ancestors)
    assert cloud.origins().tolist() == [[2, 0, 0]]


def test_winner_reports_no_evidence() -> None:
    assert run(2, 8, 1.0, winner).log_evidence is None


def test_effective_sample_size_of_equal_and_of_degenerate_weights() -> None:
    log_w = torch.tensor([[0.0, 0.0, 0.0], [0.0, -torch.inf, -torch.inf]])
    torch.testing.assert_close(effective_sample_size(log_w), torch.tensor([3.0, 1.0]))
    assert (effective_sample_size(torch.zeros(1, 49, dtype=torch.float64)) <= 49).all()


@dataclass(frozen=True)
class Dying(Chain):
    """All particles die at move 3."""

    value: float = -math.inf

    def log_potential(self, t: int, x: Tensor) -> Tensor:
        gain = torch.zeros(self.n, dtype=torch.float64)
        return gain + self.value if t == 3 else gain


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_a_system_without_weight_is_an_error_that_names_the_step(value: float) -> None:
    with pytest.raises(FloatingPointError, match="step 3"):
        smc(Dying(8, value=value), ParticleFilter(2, 4))


def test_progress_is_told_after_every_move() -> None:
    told: list[tuple[int, int]] = []
    smc(Chain(8), ParticleFilter(2, 4), lambda done, total: told.append((done, total)))
    assert told == [(t, MOVES) for t in range(1, MOVES + 1)]
