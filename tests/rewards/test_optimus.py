import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from diffreward.alphabets import DNA, RNA, ids_of
from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.optimus import Optimus5Prime
from diffreward.samples import Tokens

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "oracles" / "utr5_optimus"
IDS = torch.randint(4, (6, 50), generator=stream(0))
PROMPTS = [""] * 6


def official(name: str) -> str:
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is not here")
    return str(DATA / name)


def invented(folder: Path) -> str:
    draw = np.random.default_rng(0)
    shapes = {
        "convolution1d_1": (8, 4, 40),
        "convolution1d_2": (8, 40, 40),
        "dense_1": (1600, 40),
        "dense_2": (40, 1),
    }
    arrays = {}
    for name, shape in shapes.items():
        arrays[name + "_w"] = draw.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        arrays[name + "_b"] = draw.normal(size=shape[-1])
    np.savez(folder / "weights.npz", **arrays)
    return str(folder / "weights.npz")


def forward(file: str, ids: np.ndarray) -> np.ndarray:
    """The network in NumPy and double precision, from sums over windows."""
    arrays = {name: array.astype(np.float64) for name, array in np.load(file).items()}
    x = np.eye(4)[np.concatenate([ids, np.tile([0, 3, 2, 2], (len(ids), 1))], axis=1)]
    for name in ("convolution1d_1", "convolution1d_2"):
        windows = np.stack([x[:, k : x.shape[1] - 7 + k] for k in range(8)], axis=2)
        x = np.einsum("blkc,kcd->bld", windows, arrays[name + "_w"]) + arrays[name + "_b"]
        x = np.maximum(x, 0)
    x = np.maximum(x.reshape(len(x), -1) @ arrays["dense_1_w"] + arrays["dense_1_b"], 0)
    return (x @ arrays["dense_2_w"] + arrays["dense_2_b"])[:, 0]


def test_the_score_is_that_of_the_layers_one_by_one(tmp_path: Path) -> None:
    file = invented(tmp_path)
    scores = Optimus5Prime(file)(Tokens(IDS, RNA), PROMPTS)
    expected = torch.from_numpy(forward(file, IDS.numpy())).float()
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "correlation"),
    [("evolution_model_weights.npz", 0.829), ("retrained_evolution_model_weights.npz", 0.836)],
)
def test_predictions_correlate_with_measured_loads(name: str, correlation: float) -> None:
    with gzip.open(official("snv_phenotype_log_diff.csv.gz"), "rt") as table:
        rows = [row for row in csv.DictReader(table) if float(row["total"]) > 500]
    assert len(rows) == 2502
    utrs = Tokens(torch.tensor(ids_of([row["utr"] for row in rows], DNA)), DNA)
    scores = Optimus5Prime(official(name), DNA)(utrs, [""] * len(rows))
    loads = torch.tensor([float(row["hrl"]) for row in rows])
    found = torch.corrcoef(torch.stack([scores, loads]))[0, 1]
    torch.testing.assert_close(found.item(), correlation, rtol=0, atol=1e-3)


def test_random_sequences_are_about_average() -> None:
    reward = Optimus5Prime(official("evolution_model_weights.npz"))
    ids = torch.randint(4, (4000, 50), generator=stream(1))
    scores = reward(Tokens(ids, RNA), [""] * 4000)
    # Four standard errors of a mean and a deviation of 4000.
    assert abs(scores.mean().item() - 0.05) < 0.06
    assert abs(scores.std().item() - 0.83) < 0.05


def test_upstream_starts_are_bad_out_of_frame_only() -> None:
    reward = Optimus5Prime(official("evolution_model_weights.npz"))
    ids = torch.randint(4, (200, 50), generator=stream(2))
    before = reward(Tokens(ids, RNA), [""] * 200)
    change = {}
    # The gene starts at 50: from 20 it is read in frame.
    for start in (19, 20, 21):
        planted = ids.clone()
        planted[:, start : start + 3] = torch.tensor(ids_of(["AUG"], RNA))
        change[start] = (reward(Tokens(planted, RNA), [""] * 200) - before).mean().item()
    assert change[19] < -0.7 and change[21] < -0.7 and abs(change[20]) < 0.2


def test_both_files_hold_one_network() -> None:
    pytest.importorskip("h5py")
    arrays = Optimus5Prime(official("evolution_model_weights.npz"))
    keras = Optimus5Prime(official("evolution_model.hdf5"))
    assert torch.equal(arrays(Tokens(IDS, RNA), PROMPTS), keras(Tokens(IDS, RNA), PROMPTS))


def test_thymine_stands_for_uracil(tmp_path: Path) -> None:
    file = invented(tmp_path)
    rna = Optimus5Prime(file)(Tokens(IDS, RNA), PROMPTS)
    assert torch.equal(Optimus5Prime(file, DNA)(Tokens(IDS, DNA), PROMPTS), rna)


def test_relaxed_tokens_get_a_gradient(tmp_path: Path) -> None:
    weights = torch.eye(4)[IDS].requires_grad_()
    Optimus5Prime(invented(tmp_path))(Tokens(weights, RNA), PROMPTS).sum().backward()
    assert weights.grad is not None and bool((weights.grad.abs().sum((1, 2)) > 0).all())


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    check_reward(Optimus5Prime(invented(tmp_path)), Tokens(IDS, RNA), PROMPTS)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = invented(tmp_path)
    with pytest.raises(ValueError, match="expected 5'UTRs of 50 nt, got 49"):
        Optimus5Prime(file)(Tokens(IDS[:, 1:], RNA), PROMPTS)
    with pytest.raises(ValueError, match="got ACDE"):
        Optimus5Prime(file, "ACDE")
    with pytest.raises(ValueError, match="ACGU, got ACGT"):
        Optimus5Prime(file)(Tokens(IDS, DNA), PROMPTS)
