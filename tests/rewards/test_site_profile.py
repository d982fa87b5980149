from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import SHARED

from diffreward.alphabets import PROTEIN, ids_of
from diffreward.conformance import check_reward
from diffreward.rewards.site_profile import SiteProfile
from diffreward.samples import Tokens


def profile(folder: Path, log_p: np.ndarray) -> SiteProfile:
    np.savez(folder / "profile.npz", log_p=log_p)
    return SiteProfile(str(folder / "profile.npz"))


def tokens(*strings: str) -> Tokens:
    return Tokens(torch.tensor(ids_of(strings, PROTEIN)), PROTEIN)


def test_the_score_is_the_mean_over_sites(tmp_path: Path) -> None:
    log_p = -np.arange(63.0).reshape(1, 3, 21)
    for array in (log_p, log_p[0]):
        reward = profile(tmp_path, array)
        # A, C and Y are columns 0, 1 and 19.
        scores = reward(tokens("AAA", "CAY"), ["", ""])
        assert scores.tolist() == pytest.approx([-21, -(1 + 21 + 42 + 19) / 3])


def test_relaxed_sequences_are_scored_linearly_and_have_gradients(tmp_path: Path) -> None:
    reward = profile(tmp_path, -np.arange(40.0).reshape(2, 20))
    weights = torch.full((1, 2, 20), 0.05, requires_grad=True)
    score = reward(Tokens(weights, PROTEIN), [""])
    assert score.item() == pytest.approx(-19.5, rel=1e-5)
    score.sum().backward()
    torch.testing.assert_close(weights.grad, -torch.arange(40.0).reshape(1, 2, 20) / 2)


def test_the_contract_is_kept(tmp_path: Path) -> None:
    reward = profile(tmp_path, np.log(np.random.default_rng(0).dirichlet(np.ones(20), 4)))
    check_reward(reward, tokens("ACDE", "WYVA", "GGGG"), ["", "", ""])


def test_sequences_of_another_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="for 2 sites, got sequences of 3"):
        profile(tmp_path, np.zeros((2, 20)))(tokens("AAA"), [""])


@pytest.mark.parametrize("shape", [(20,), (2, 19), (2, 3, 21)])
def test_other_arrays_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no array log_p"):
        profile(tmp_path, np.zeros(shape))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        SiteProfile(str(tmp_path / "nowhere.npz"))
    np.savez(tmp_path / "other.npz", weights=np.zeros((2, 21)))
    with pytest.raises(ValueError, match=r"no array log_p .*weights"):
        SiteProfile(str(tmp_path / "other.npz"))


@pytest.mark.parametrize(("name", "expected"), [("5L33", -1.68224), ("6MRR", -1.59729)])
def test_native_sequences_score_as_proteinmpnn_says(name: str, expected: float) -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not here")
    file = SHARED / f"{name}_proteinmpnn_unconditional_probs.npz"
    with np.load(file) as arrays:
        native = torch.from_numpy(arrays["S"])[None]
    score = SiteProfile(str(file))(Tokens(native, PROTEIN), [""])
    assert score.item() == pytest.approx(expected, abs=1e-4)
