"""What is kept of reference sets: against numpy, in any split, and through files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffreward.moments import Moments, about, as_rows, load_rows, save_rows
from diffreward.random import stream
from diffreward.samples import Samples, Vectors


def draw(n: int, d: int = 5, seed: int = 0) -> Tensor:
    return 3 * torch.randn(n, d, generator=stream(seed), dtype=torch.float64) + 50


def test_moments_are_those_of_numpy() -> None:
    rows = draw(40)
    moments = Moments.of(rows)
    assert moments.count == 40
    assert np.allclose(moments.mean, rows.numpy().mean(0), rtol=1e-13)
    assert np.allclose(moments.covariance, np.cov(rows.numpy().T), rtol=1e-12)


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [1, 39], [13, 0, 20, 7]])
def test_moments_of_parts_merge_to_those_of_the_whole(sizes: list[int]) -> None:
    rows = draw(40)
    first, *others = (Moments.of(part) for part in rows.split(sizes) if len(part))
    for part in others:
        first = first.merge(part)
    whole = Moments.of(rows)
    assert first.count == 40
    assert torch.allclose(first.mean, whole.mean, rtol=1e-14)
    assert torch.allclose(first.scatter, whole.scatter, rtol=1e-12)


def test_rows_in_float32_far_from_zero_lose_nothing() -> None:
    """E[xx] - E[x]E[x] in float32 would be off by 2.5e-3 here."""
    rows = draw(4000).float()
    covariance = np.cov(rows.double().numpy().T)
    parts = [Moments.of(part) for part in rows.split(64)]
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    assert np.abs(total.covariance.numpy() - covariance).max() < 1e-11


def test_rows_that_are_not_finite_do_not_count() -> None:
    rows = draw(10).reshape(5, 2, 5)
    rows[1, 0, 3], rows[4, 1, 0] = torch.nan, torch.inf
    kept = rows.flatten(0, 1)[[0, 1, 3, 4, 5, 6, 7, 8]]
    assert Moments.of(rows).count == 8
    assert torch.equal(Moments.of(rows).mean, Moments.of(kept).mean)
    with pytest.raises(ValueError, match="no finite rows"):
        Moments.of(torch.full((3, 2), torch.nan))


def test_moments_of_samples_are_those_of_all_their_rows() -> None:
    def embedding(samples: Samples, prompts: Sequence[str]) -> Tensor:
        assert not torch.is_grad_enabled() and prompts == ["a"] * len(samples)
        return samples.values.unflatten(1, (3, 2))

    values = torch.randn(7, 6, generator=stream(0))
    batches = [(Vectors(part), ["a"] * len(part)) for part in values.split(3)]
    moments = Moments.of_samples(embedding, batches)
    assert moments.count == 21
    assert torch.allclose(moments.mean, values.double().reshape(-1, 2).mean(0))
    with pytest.raises(ValueError, match="no samples"):
        Moments.of_samples(embedding, [])


def test_a_file_gives_back_the_moments_and_what_they_are(tmp_path: Path) -> None:
    moments, file = Moments.of(draw(40)), tmp_path / "new" / "reference.safetensors"
    moments.save(file, {"embedding": "laion/clap-htsat-unfused", "samples": "FSDD, george"})
    read = Moments.load(file)
    assert read.count == moments.count
    assert torch.equal(read.mean, moments.mean) and torch.equal(read.scatter, moments.scatter)
    assert about(file) == {"embedding": "laion/clap-htsat-unfused", "samples": "FSDD, george"}


@pytest.mark.parametrize("name", ["rows.safetensors", "rows.npy"])
def test_rows_go_through_files(tmp_path: Path, name: str) -> None:
    rows, file = draw(6).float(), tmp_path / name
    if name.endswith("npy"):
        np.save(file, rows.numpy())
    else:
        save_rows(rows, file, {"embedding": "frames"})
    assert torch.equal(load_rows(file), rows)
    assert torch.equal(as_rows(str(file)), rows) and as_rows(rows) is rows


def test_what_a_file_does_not_hold_is_said(tmp_path: Path) -> None:
    rows, moments = tmp_path / "rows.safetensors", tmp_path / "moments.safetensors"
    save_rows(draw(6), rows)
    Moments.of(draw(6)).save(moments)
    np.save(tmp_path / "flat.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"holds \['rows'\]; moments are"):
        Moments.load(rows)
    with pytest.raises(ValueError, match=r"holds \['count', 'mean', 'scatter'\]"):
        load_rows(moments)
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        load_rows(tmp_path / "flat.npy")
    with pytest.raises(FileNotFoundError, match=r"no reference at .*nowhere"):
        Moments.load(tmp_path / "nowhere.safetensors")


def test_moments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and \(2, 2\)"):
        Moments(4, torch.zeros(3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        _ = Moments.of(draw(1)).covariance
