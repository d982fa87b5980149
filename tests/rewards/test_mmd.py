"""The maximum mean discrepancy: sums over pairs, what published code computes, and its parts."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffreward.moments import save_rows
from diffreward.random import stream
from diffreward.rewards.mmd import MMD
from diffreward.samples import Samples, Vectors
from diffreward.set_reward import SetReward

KERNELS = ["polynomial", "gaussian"]


def itself(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return samples.values[:, None]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed), dtype=torch.float64)


def waves(n: int, d: int, start: int) -> Tensor:
    """Numbers without a pattern, which are the same for every version of torch."""
    i = torch.arange(start, start + n * d, dtype=torch.float64)
    return torch.sin(i**2 / 3).reshape(n, d) * torch.linspace(0.5, 2, d, dtype=torch.float64)


REFERENCE = draw(30, 5, seed=1) * 0.8 + 0.2


def kernel(name: str, x: Tensor, y: Tensor, bandwidth: float = 2.0) -> float:
    if name == "polynomial":
        return float(x @ y / len(x) + 1) ** 3
    return math.exp(-float((x - y).square().sum()) / (2 * bandwidth**2))


def by_pairs(name: str, x: Tensor, y: Tensor) -> float:
    """Lemma 6 of Gretton et al., a pair at a time."""

    def within(rows: Tensor) -> float:
        n = len(rows)
        pairs = [kernel(name, rows[i], rows[j]) for i in range(n) for j in range(n) if i != j]
        return sum(pairs) / (n * (n - 1))

    across = sum(kernel(name, a, b) for a in x for b in y) / (len(x) * len(y))
    return within(x) + within(y) - 2 * across


def reward(name: str, reference: Tensor = REFERENCE, **options: object) -> MMD:
    bandwidth = 2.0 if name == "gaussian" else None
    return MMD(itself, reference, name, bandwidth, **options)


@pytest.mark.parametrize("name", KERNELS)
def test_it_is_the_unbiased_estimate(name: str) -> None:
    rows = draw(12, 5)
    found = float(reward(name).value(rows))
    assert found == pytest.approx(-by_pairs(name, rows, REFERENCE), rel=1e-10)


def test_it_is_what_torch_fidelity_computes_of_one_subset_of_all() -> None:
    """The value is that of torch-fidelity 0.4.0."""
    found = float(reward("polynomial", waves(30, 5, 5000) + 0.3).value(waves(30, 5, 0)))
    assert found == pytest.approx(-0.2021881754903494, abs=1e-14)


@pytest.mark.parametrize("name", KERNELS)
def test_few_samples_of_the_reference_law_are_at_no_distance_on_average(name: str) -> None:
    """Over 200 sets of 5 and one reference; its noise is the same as that of its 1000 rows."""
    against = reward(name, draw(1000, 5, seed=7))
    values = torch.stack([against.value(rows) for rows in draw(200, 5, 5)])
    error = float(values.std()) / math.sqrt(200)
    assert abs(float(values.mean())) < 4 * error + 5 * error * math.sqrt(5 / 1000)


def test_the_bandwidth_is_the_median_distance_in_the_reference() -> None:
    distances = torch.pdist(REFERENCE).sort().values
    median = float(distances[len(distances) // 2])
    rows = draw(12, 5)
    found, expected = (MMD(itself, REFERENCE, "gaussian", width) for width in (None, median))
    assert float(found.value(rows)) == pytest.approx(float(expected.value(rows)), rel=1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_its_derivatives_are_those_of_finite_differences(name: str) -> None:
    against, rows = reward(name), draw(6, 5).requires_grad_()
    assert torch.autograd.gradcheck(against.value, rows)
    n, e = 6, 1e-6
    equal, one = torch.full((n,), 1 / n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    value = against.value(rows.detach(), equal)
    slopes = torch.stack(
        [(against.value(rows.detach(), (1 - e) * equal + e * w) - value) / e for w in one]
    )
    found = against.credits(rows[:, None])
    assert torch.allclose(found, slopes, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", KERNELS)
def test_influence_is_nearness_to_the_reference_less_nearness_to_the_set(name: str) -> None:
    rows = draw(9, 5)
    within = [
        sum(kernel(name, a, b) for j, b in enumerate(rows) if j != i) / 8
        for i, a in enumerate(rows)
    ]
    across = [sum(kernel(name, a, b) for b in REFERENCE) / 30 for a in rows]
    expected = 2 * (torch.tensor(across) - torch.tensor(within)).double()
    found = reward(name).credits(rows[:, None])
    assert torch.allclose(found, expected - expected.mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("b", "r", "past"), [(9, 1, 0), (9, 1, 4), (5, 3, 0), (5, 3, 4)])
def test_leaving_out_each_in_closed_form_is_brute_force(
    name: str, b: int, r: int, past: int
) -> None:
    against, blocks, others = reward(name), draw(b, r, 5), draw(past, 5, seed=3)
    found = against.values_without_each(blocks, others)
    expected = SetReward.values_without_each(against, blocks, others)
    assert torch.allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_in_float32_it_errs_by_rounding_of_the_kernel_only(name: str) -> None:
    """A kernel is at most 1, or some tens; the Gaussian one does not see where zero is."""
    shift = 20.0 if name == "gaussian" else 0.0
    rows, against = draw(12, 5) + shift, reward(name, REFERENCE + shift)
    exact = float(against.value(rows))
    tolerance = 1e-6 if name == "gaussian" else 1e-5
    assert float(against.value(rows.float())) == pytest.approx(exact, abs=tolerance)


def test_the_scores_of_a_set_are_its_distance_and_its_samples_parts() -> None:
    rows = draw(20, 5) * 0.8
    rows[4] += 2
    scores = reward("polynomial")(Vectors(rows), [""] * 20)
    assert scores.argmin() == 4
    expected = -by_pairs("polynomial", rows, REFERENCE)
    assert float(scores.mean()) == pytest.approx(expected, rel=1e-5)


def test_a_file_of_rows_is_a_reference(tmp_path: Path) -> None:
    save_rows(REFERENCE, tmp_path / "reference.safetensors")
    rows = draw(12, 5)
    found = MMD(itself, tmp_path / "reference.safetensors").value(rows)
    assert torch.equal(found, MMD(itself, REFERENCE).value(rows))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no reference at"):
        MMD(itself, tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="got 'linear'"):
        MMD(itself, REFERENCE, "linear")
    with pytest.raises(ValueError, match=r"got 2\.0 of the polynomial kernel"):
        MMD(itself, REFERENCE, "polynomial", 2.0)
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        MMD(itself, REFERENCE[:1])
    with pytest.raises(ValueError, match="has 5 features, the embedding gives 4"):
        MMD(itself, REFERENCE)(Vectors(draw(6, 4)), [""] * 6)
