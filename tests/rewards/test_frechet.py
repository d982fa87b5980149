"""The Frechet distance: known Gaussians, scipy's square root of a matrix, and its derivatives."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffreward.conformance import check_reward
from diffreward.frechet import Gaussian, nuclear_norm
from diffreward.moments import Moments
from diffreward.random import stream
from diffreward.rewards.frechet import FrechetDistance
from diffreward.rewards.per_song import PerSampleFrechet
from diffreward.samples import Samples, Vectors
from diffreward.set_reward import SetReward


def itself(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return samples.values[:, None]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed), dtype=torch.float64)


def reference(d: int, n: int | None = None) -> Tensor:
    """Rows with unequal variances in all directions, away from zero."""
    mixing = draw(d, d, seed=11) / math.sqrt(d)
    return draw(n or 10 * d, d, seed=12) @ mixing + 0.5


def waves(n: int, d: int, start: int) -> Tensor:
    """Numbers without a pattern, which are the same for every version of torch."""
    i = torch.arange(start, start + n * d, dtype=torch.float64)
    return torch.sin(i**2 / 3).reshape(n, d) * torch.linspace(0.5, 2, d, dtype=torch.float64)


def gaussian(d: int) -> Gaussian:
    moments = Moments.of(reference(d))
    return Gaussian(moments.mean, moments.covariance)


def published(x: Tensor, y: Tensor) -> float:
    """As pytorch-fid and its descendants write it, with the square root of a matrix."""
    from scipy.linalg import sqrtm

    one, two = (np.cov(rows.numpy(), rowvar=False) for rows in (x, y))
    apart = x.numpy().mean(0) - y.numpy().mean(0)
    return float(apart @ apart + np.trace(one + two - 2 * sqrtm(one @ two).real))


def test_between_axis_aligned_gaussians_it_is_that_of_their_parameters() -> None:
    """|m - m_r|^2 + sum (s - s_r)^2, for rows whose moments are exactly those."""
    s, s_r = torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([0.5, 2.5, 3.0]).double()
    m, m_r = torch.tensor([1.0, 0.0, -1.0]).double(), torch.tensor([0.0, 2.0, -1.0]).double()
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 3)
    rows = m + corners * s * math.sqrt(7 / 8)
    found = Gaussian(m_r, torch.diag(s_r**2)).distance(rows)
    assert float(found) == pytest.approx(float((m - m_r).square().sum() + (s - s_r).square().sum()))


def test_a_set_is_at_no_distance_from_its_own_moments() -> None:
    rows = reference(6)
    assert abs(float(gaussian(6).distance(rows))) < 1e-12


@pytest.mark.parametrize(("n", "d", "tolerance"), [(50, 16, 1e-8), (300, 24, 1e-8), (12, 32, 1e-6)])
def test_it_is_what_published_code_computes(n: int, d: int, tolerance: float) -> None:
    """Which adds square roots of rounded zeros where there are fewer rows than features."""
    rows = draw(n, d)
    found = float(gaussian(d).distance(rows))
    assert found == pytest.approx(published(rows, reference(d)), rel=tolerance)


@pytest.mark.parametrize(
    ("n", "d", "fidelity", "clean"),
    [
        (50, 16, 3.150260022914022, 3.1502600229140114),
        (12, 24, 16.05967322188068, 16.05967322601758),
    ],
)
def test_it_is_what_torch_fidelity_and_clean_fid_compute(
    n: int, d: int, fidelity: float, clean: float
) -> None:
    """Values of torch-fidelity 0.4.0 and clean-fid 0.1.35, which differ where n < d."""
    moments = Moments.of(waves(80, d, 5000) + 0.3)
    found = float(Gaussian(moments.mean, moments.covariance).distance(waves(n, d, 0)))
    tolerance = 1e-8 if n > d else 1e-7
    assert found == pytest.approx(fidelity, rel=tolerance)
    assert found == pytest.approx(clean, rel=tolerance)


@pytest.mark.parametrize(("n", "d"), [(9, 4), (4, 9)])
def test_its_gradient_is_that_of_finite_differences(n: int, d: int) -> None:
    target, rows = gaussian(d), draw(n, d).requires_grad_()
    weights = torch.rand(n, generator=stream(2), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(target.distance, rows)
    assert torch.autograd.gradcheck(
        lambda rows, weights: target.distance(rows, weights / weights.sum()), (rows, weights)
    )


@pytest.mark.parametrize(("n", "d"), [(16, 64), (32, 128), (100, 24)])
def test_in_float32_its_gradient_keeps_six_digits(n: int, d: int) -> None:
    """Against float64 through the eigenvalues of the products of rows, which autograd knows."""

    def other_way(rows: Tensor) -> Tensor:
        centred = (rows - rows.mean(0)) / math.sqrt(n - 1)
        overlap = centred @ gaussian(d).covariance @ centred.T
        # One eigenvalue is zero, as the rows are centred; its root has no derivative.
        values = torch.linalg.eigvalsh(overlap)
        values = values[values > 1e-10 * values[-1]]
        apart = (rows.mean(0) - gaussian(d).mean).square().sum()
        trace = centred.square().sum() + gaussian(d).covariance.trace()
        return apart + trace - 2 * values.sqrt().sum()

    exact, low = draw(n, d).requires_grad_(), draw(n, d).float().requires_grad_()
    (expected,) = torch.autograd.grad(other_way(exact), exact)
    value = gaussian(d).distance(low)
    (found,) = torch.autograd.grad(value, low)
    assert value.item() == pytest.approx(other_way(exact).item(), rel=1e-5)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_where_rows_are_equal_the_gradient_is_finite() -> None:
    rows = draw(4, 8).repeat(3, 1).requires_grad_()
    (slope,) = torch.autograd.grad(gaussian(8).distance(rows), rows)
    assert slope.isfinite().all()
    matrix = torch.zeros(3, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(nuclear_norm(matrix), matrix)
    assert torch.equal(slope, torch.zeros(3, 4))


def test_a_covariance_of_few_rows_is_a_reference_too() -> None:
    few = reference(16, n=6)
    moments = Moments.of(few)
    target = Gaussian(moments.mean, moments.covariance)
    assert target.root.shape == (16, 5)
    assert float(target.distance(draw(40, 16))) == pytest.approx(
        published(draw(40, 16), few), rel=1e-6
    )


@pytest.mark.parametrize(("n", "d"), [(24, 8), (8, 24)])
def test_influence_is_the_change_by_a_little_weight_on_one_sample(n: int, d: int) -> None:
    reward, rows, e = FrechetDistance(itself, Moments.of(reference(d))), draw(n, d), 1e-6
    equal, one = torch.full((n,), 1 / n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    value = reward.value(rows, equal)
    slopes = [(reward.value(rows, (1 - e) * equal + e * one[i]) - value) / e for i in range(n)]
    found = reward.credits(rows[:, None])
    assert float((found - torch.stack(slopes)).abs().max() / found.abs().max()) < 1e-3


def test_influence_is_that_of_the_transport_map() -> None:
    """With the map T from the set's Gaussian to the reference's, for covariances over n."""
    from scipy.linalg import inv, sqrtm

    n, d = 40, 6
    rows, target = draw(n, d) + 0.3, gaussian(d)
    mean, covariance = rows.numpy().mean(0), np.cov(rows.numpy().T)
    root = sqrtm(target.covariance.numpy()).real
    transport = root @ inv(sqrtm(root @ covariance @ root).real) @ root
    centred = rows.numpy() - mean
    quadratic = (centred**2).sum(1) - np.einsum("ni,ij,nj->n", centred, transport, centred)
    expected = 2 * centred @ (mean - target.mean.numpy()) + quadratic * n / (n - 1)
    found = -FrechetDistance(itself, Moments.of(reference(d))).credits(rows[:, None]).numpy()
    assert np.allclose(found, expected - expected.mean(), rtol=1e-9, atol=1e-9)


def test_influences_as_rewards_push_towards_the_reference() -> None:
    """For samples of N(m, I) the gradient of the value to m is -2 (m - m_r).

    The mean of influence times score is off by its standard deviation, estimated from the terms,
    over sqrt(n); influence at the drawn set instead of the law adds the error of its mean,
    2 / sqrt(n). Both are covered by four standard errors.
    """
    n, d = 4000, 3
    target = Moments.of(reference(d))
    rows = draw(n, d) + 1
    credits = FrechetDistance(itself, target).credits(rows[:, None])
    terms = credits[:, None] * (rows - 1)
    error = terms.std(0) / math.sqrt(n) + 2 / math.sqrt(n)
    assert ((terms.mean(0) + 2 * (1 - target.mean)).abs() < 4 * error).all()


@pytest.mark.parametrize(("b", "r", "d"), [(20, 1, 6), (6, 1, 20), (7, 3, 6), (4, 3, 20)])
@pytest.mark.parametrize("past", [0, 4])
def test_leaving_out_each_in_closed_form_is_brute_force(b: int, r: int, d: int, past: int) -> None:
    reward = FrechetDistance(itself, Moments.of(reference(d)))
    blocks, others = draw(b, r, d), draw(past, d, seed=3)
    found = reward.values_without_each(blocks, others)
    expected = SetReward.values_without_each(reward, blocks, others)
    assert torch.allclose(found, expected, rtol=1e-9)


def test_leaving_out_each_of_rows_in_float32_is_exact() -> None:
    reward, blocks = FrechetDistance(itself, Moments.of(reference(64))), draw(32, 1, 64)
    exact = SetReward.values_without_each(reward, blocks, blocks[0, :0])
    found = reward.values_without_each(blocks.float(), blocks[0, :0].float())
    assert torch.allclose(found.double(), exact, rtol=1e-6)


def test_the_correction_takes_away_the_bias_of_few_samples() -> None:
    """Over 60 sets, d = 8, n = 40; the errors are standard errors of the 60."""
    target = Gaussian(torch.zeros(8).double(), torch.eye(8).double())
    reward = FrechetDistance(itself, Moments(2, target.mean, target.covariance))
    sets = draw(60, 40, 1, 8) * 0.7
    true = -8 * 0.3**2
    raw = torch.stack([reward.value(rows[:, 0]) for rows in sets])
    corrected = torch.stack([reward.corrected(rows) for rows in sets])
    assert float(raw.mean()) - true < -10 * float(raw.std()) / math.sqrt(60)
    assert abs(float(corrected.mean()) - true) < 4 * float(corrected.std()) / math.sqrt(60)
    with pytest.raises(ValueError, match="4 rows per feature, 32, got 31"):
        reward.corrected(sets[0, :31])


def test_statistics_of_other_tools_are_read(tmp_path: Path) -> None:
    rows, moments = draw(20, 6), Moments.of(reference(6))
    mu, sigma = moments.mean.numpy(), moments.covariance.numpy()
    np.savez(tmp_path / "fid.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "fad.npz", **{"vggish.mu": mu, "vggish.cov": sigma, "other.mu": mu})
    moments.save(tmp_path / "own.safetensors")
    expected = float(FrechetDistance(itself, moments).value(rows))
    for name in ("fid.npz", "fad.npz#vggish", "own.safetensors"):
        found = FrechetDistance(itself, f"{tmp_path}/{name}").value(rows)
        assert float(found) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match=r"got \['other.mu', 'vggish.cov', 'vggish.mu'\]"):
        FrechetDistance(itself, tmp_path / "fad.npz")
    for name in ("nowhere.npz", "nowhere.safetensors"):
        with pytest.raises(FileNotFoundError, match=r"no reference at .*nowhere"):
            FrechetDistance(itself, tmp_path / name)


def test_another_embedding_than_that_of_the_reference_is_named() -> None:
    reward = FrechetDistance(itself, Moments.of(reference(6)))
    with pytest.raises(ValueError, match="has 6 features, the embedding gives 5"):
        reward(Vectors(draw(9, 5)), [""] * 9)


def test_the_scores_of_a_set_are_its_distance_and_its_samples_parts() -> None:
    reward, rows = FrechetDistance(itself, Moments.of(reference(6))), draw(30, 6)
    far = rows.clone()
    far[4] += 5
    scores = reward(Vectors(far), [""] * 30)
    assert scores.argmin() == 4
    assert float(scores.mean()) == pytest.approx(-published(far, reference(6)), rel=1e-6)


def windows(samples: Samples, prompts: Sequence[str]) -> Tensor:
    """Four rows of each sample."""
    return samples.values.unflatten(1, (4, -1))


def test_one_sample_alone_is_a_set_of_its_rows() -> None:
    reward = PerSampleFrechet(windows, Moments.of(reference(6)))
    samples = Vectors(draw(3, 24).float())
    expected = [-published(rows, reference(6)) for rows in windows(samples, []).double()]
    found = reward(samples, [""] * 3)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    check_reward(reward, samples, [""] * 3)


def test_one_sample_alone_is_differentiable_and_may_have_no_score() -> None:
    reward = PerSampleFrechet(windows, Moments.of(reference(6)))
    values = draw(3, 24)
    values[1, 3] = torch.nan
    values.requires_grad_()
    scores = reward(Vectors(values), [""] * 3)
    assert scores.isnan().tolist() == [False, True, False]
    (slope,) = torch.autograd.grad(scores[0], values)
    assert slope.isfinite().all() and slope[0].norm() > 0 and not slope[1:].any()


def test_one_row_alone_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="one row of a sample"):
        PerSampleFrechet(itself, Moments.of(reference(6)))(Vectors(draw(3, 6)), [""] * 3)
