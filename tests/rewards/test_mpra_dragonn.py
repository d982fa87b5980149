from pathlib import Path

import numpy as np
import pytest
import torch

from diffreward.alphabets import DNA, ids_of
from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.mpra_dragonn import MPRADragoNN
from diffreward.samples import Tokens

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "oracles" / "mpra_dragonn"
IDS = torch.randint(4, (6, 145), generator=stream(0))
PROMPTS = [""] * 6


def official(name: str = "convmodel_weights.npz") -> str:
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is not here")
    return str(DATA / name)


def invented(folder: Path) -> str:
    """Weights of the right shapes, random but for variances of 1."""
    draw = np.random.default_rng(0)
    arrays = {}
    for i, channels in ((1, 4), (2, 120), (3, 120)):
        arrays[f"conv{i}_w"] = draw.normal(size=(5, channels, 120)) / np.sqrt(5 * channels)
        arrays[f"conv{i}_b"] = draw.normal(size=120)
        for name in ("gamma", "beta", "moving_mean"):
            arrays[f"bn{i}_{name}"] = draw.normal(size=120)
        arrays[f"bn{i}_moving_variance"] = draw.uniform(0.5, 2, size=120)
    arrays["dense_w"], arrays["dense_b"] = draw.normal(size=(15960, 12)) / 100, np.arange(12.0)
    np.savez(folder / "weights.npz", **arrays)
    return str(folder / "weights.npz")


def forward(file: str, ids: np.ndarray) -> np.ndarray:
    """The network in NumPy and double precision, from sums over windows."""
    arrays = {name: array.astype(np.float64) for name, array in np.load(file).items()}
    x = np.eye(4)[ids]
    for i in (1, 2, 3):
        windows = np.stack([x[:, k : x.shape[1] - 4 + k] for k in range(5)], axis=2)
        x = np.einsum("blkc,kcd->bld", windows, arrays[f"conv{i}_w"]) + arrays[f"conv{i}_b"]
        x = np.maximum(x, 0) - arrays[f"bn{i}_moving_mean"]
        x *= arrays[f"bn{i}_gamma"] / np.sqrt(arrays[f"bn{i}_moving_variance"] + 1e-3)
        x += arrays[f"bn{i}_beta"]
    return x.reshape(len(x), -1) @ arrays["dense_w"] + arrays["dense_b"]


def test_the_outputs_are_those_of_the_layers_one_by_one(tmp_path: Path) -> None:
    file = invented(tmp_path)
    outputs = MPRADragoNN(file).outputs(Tokens(IDS, DNA))
    expected = torch.from_numpy(forward(file, IDS.numpy())).float()
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


def test_official_outputs_are_those_of_the_layers_one_by_one() -> None:
    outputs = MPRADragoNN(official()).outputs(Tokens(IDS, DNA))
    expected = torch.from_numpy(forward(official(), IDS.numpy())).float()
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-5)


def test_both_files_hold_one_network() -> None:
    pytest.importorskip("h5py")
    arrays = MPRADragoNN(official()).outputs(Tokens(IDS, DNA))
    keras = MPRADragoNN(official("ConvModel_pretrained.hdf5")).outputs(Tokens(IDS, DNA))
    assert torch.equal(arrays, keras)


def effects(site: str) -> tuple[float, float]:
    """What four sites add to random sequences in liver and blood cells; standard errors 0.02."""
    ids = torch.randint(4, (150, 145), generator=stream(1))
    planted = ids.clone()
    for start in (20, 50, 80, 110):
        planted[:, start : start + len(site)] = torch.tensor(ids_of([site], DNA))
    reward = MPRADragoNN(official())
    added = (reward.outputs(Tokens(planted, DNA)) - reward.outputs(Tokens(ids, DNA))).mean(0)
    return added[8].item(), added[2].item()


def test_a_factor_of_the_liver_acts_there() -> None:
    for site in ("CAAAGTCCA", "TGGACTTTGCCC"):
        liver, blood = effects(site)  # HNF4A
        assert liver > 0.45 and liver - blood > 0.15


def test_a_factor_of_both_cell_lines_acts_in_both() -> None:
    liver, blood = effects("TGACTCA")  # AP-1
    assert liver > 0.6 and blood > 0.6 and abs(liver - blood) < 0.2


def test_tasks_are_averages_of_replicates(tmp_path: Path) -> None:
    file = invented(tmp_path)
    outputs = MPRADragoNN(file).outputs(Tokens(IDS, DNA))
    for task, column in (("K562", 2), ("K562 SV40P", 5), ("HepG2", 8), ("HepG2 SV40P", 11)):
        scores = MPRADragoNN(file, task)(Tokens(IDS, DNA), PROMPTS)
        assert torch.equal(scores, outputs[:, column])


def test_the_middle_of_longer_sequences_can_be_scored(tmp_path: Path) -> None:
    file = invented(tmp_path)
    longer = Tokens(torch.randint(4, (6, 200), generator=stream(2)), DNA)
    scores = MPRADragoNN(file, crop="center")(longer, PROMPTS)
    middle = Tokens(longer.ids[:, 27:172], DNA)
    assert torch.equal(scores, MPRADragoNN(file)(middle, PROMPTS))
    with pytest.raises(ValueError, match="expected sequences of 145 bp, got 200; crop='center'"):
        MPRADragoNN(file)(longer, PROMPTS)
    with pytest.raises(ValueError, match="got 144"):
        MPRADragoNN(file, crop="center")(Tokens(IDS[:, :144], DNA), PROMPTS)


def test_relaxed_tokens_get_a_gradient(tmp_path: Path) -> None:
    weights = torch.eye(4)[IDS].requires_grad_()
    MPRADragoNN(invented(tmp_path))(Tokens(weights, DNA), PROMPTS).sum().backward()
    assert weights.grad is not None and bool((weights.grad.abs().sum((1, 2)) > 0).all())


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    check_reward(MPRADragoNN(invented(tmp_path)), Tokens(IDS, DNA), PROMPTS)


def test_other_files_and_arguments_are_refused(tmp_path: Path) -> None:
    file = invented(tmp_path)
    with pytest.raises(ValueError, match="HepG2 SV40P and crop"):
        MPRADragoNN(file, "liver")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 'HepG2' and 'left'"):
        MPRADragoNN(file, crop="left")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        MPRADragoNN(str(tmp_path / "none.npz"))
    np.savez(tmp_path / "other.npz", conv1_w=np.zeros(3))
    with pytest.raises(ValueError, match=r"lacks the arrays .*'dense_b'"):
        MPRADragoNN(str(tmp_path / "other.npz"))
