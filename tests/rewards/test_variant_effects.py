from pathlib import Path

import pytest
import torch

from diffreward.alphabets import PROTEIN, ids_of, one_hot
from diffreward.conformance import check_reward
from diffreward.oracles.epistasis import GlobalEpistasis
from diffreward.random import stream
from diffreward.rewards.variant_effects import VariantEffects
from diffreward.samples import Tokens, Vectors

WILD_TYPE = "SKGEEL"
IDS = torch.randint(20, (5, 6), generator=stream(0))
PROMPTS = [""] * 5
ASSETS = Path(__file__).resolve().parents[2] / "assets/protein"


def written(folder: Path) -> str:
    network = GlobalEpistasis(WILD_TYPE, PROTEIN, (3.0, 0.0), (0.5, 1.0))
    network.effects.data = torch.randn(6, 20, 2, generator=stream(1))
    network.save_pretrained(folder)
    return str(folder)


def test_the_score_is_the_output_of_the_network(tmp_path: Path) -> None:
    folder = written(tmp_path)
    network = GlobalEpistasis.from_pretrained(folder).eval()
    samples = Tokens(IDS, PROTEIN)
    for task in (0, 1):
        reward = VariantEffects(folder, task)
        assert torch.equal(reward(samples, PROMPTS), network(one_hot(samples, PROTEIN))[:, task])
    assert reward.wild_type == WILD_TYPE


def test_symbols_count_and_not_their_numbers(tmp_path: Path) -> None:
    reward = VariantEffects(written(tmp_path))
    turned = Tokens(19 - IDS, PROTEIN[::-1])
    torch.testing.assert_close(reward(turned, PROMPTS), reward(Tokens(IDS, PROTEIN), PROMPTS))


def test_relaxed_tokens_get_the_slope_of_the_score(tmp_path: Path) -> None:
    reward = VariantEffects(written(tmp_path))
    weights = torch.eye(20)[IDS].requires_grad_()
    scores = reward(Tokens(weights, PROTEIN), PROMPTS)
    (slope,) = torch.autograd.grad(scores.sum(), weights)
    direction = torch.randn(5, 6, 20, generator=stream(2))
    moved = (reward(Tokens(weights + 1e-2 * direction, PROTEIN), PROMPTS) - scores).detach()
    assert slope.abs().amax((1, 2)).min() > 1e-3
    torch.testing.assert_close(moved, 1e-2 * (slope * direction).sum((1, 2)), rtol=0.1, atol=1e-3)


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    check_reward(VariantEffects(written(tmp_path)), Tokens(IDS, PROTEIN), PROMPTS)


def test_loading_draws_no_random_number(tmp_path: Path) -> None:
    folder = written(tmp_path)
    before = torch.random.get_rng_state()
    VariantEffects(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        VariantEffects(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="the tasks are 0 to 1"):
        VariantEffects(written(tmp_path), task=2)


def test_other_samples_are_refused(tmp_path: Path) -> None:
    reward = VariantEffects(written(tmp_path))
    with pytest.raises(ValueError, match="got ACGT"):
        reward(Tokens(IDS % 4, "ACGT"), PROMPTS)
    with pytest.raises(ValueError, match="expected rows"):
        reward(Tokens(IDS[:, :5], PROTEIN), PROMPTS)
    with pytest.raises(TypeError, match="scores Tokens"):
        reward(Vectors(torch.zeros(5, 2)), PROMPTS)


@pytest.mark.skipif(not ASSETS.is_dir(), reason="the avGFP oracles have not been trained")
@pytest.mark.parametrize("name", ["reward_oracle", "evaluation_oracle"])
def test_the_bundled_oracles_know_avgfp(name: str) -> None:
    reward = VariantEffects(str(ASSETS / name))
    letters = reward.wild_type
    # The chromophore, S65, Y66 and G67 of the literature, which counts the first methionine.
    assert letters[63:66] == "SYG"
    without = letters[:64] + "N" + letters[65:]
    samples = Tokens(torch.tensor(ids_of([letters, without], PROTEIN)), PROTEIN)
    bright, dark = reward(samples, ["", ""]).tolist()
    # Measured: 3.719 and 1.301.
    assert bright == pytest.approx(3.719, abs=0.05)
    assert dark < 2.0
