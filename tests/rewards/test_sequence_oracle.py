from pathlib import Path

import pytest
import torch

from diffreward.alphabets import DNA, ids_of
from diffreward.conformance import check_reward
from diffreward.oracles.regressor import SequenceRegressor
from diffreward.random import stream
from diffreward.rewards.sequence_oracle import SequenceOracle
from diffreward.samples import Tokens, Vectors

ROOT = Path(__file__).parents[2]
MEASURED = ROOT.parent / "shared" / "data" / "lentimpra_wtc11"
IDS = torch.randint(4, (5, 16), generator=stream(0))
PROMPTS = [""] * 5


def written(folder: Path, seed: int = 0, length: int = 16) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SequenceRegressor(
            DNA, length, ("a", "b"), (1.0, -1.0), (2.0, 3.0), channels=8, blocks=2
        )
    network.save_pretrained(folder)
    return str(folder)


def test_the_score_is_the_output_of_the_network(tmp_path: Path) -> None:
    folder = written(tmp_path / "one")
    network = SequenceRegressor.from_pretrained(folder).eval()
    expected = network(torch.eye(4)[IDS])
    for task in (0, 1):
        scores = SequenceOracle(folder, task)(Tokens(IDS, DNA), PROMPTS)
        torch.testing.assert_close(scores, expected[:, task])


def test_several_networks_give_their_mean_and_spread(tmp_path: Path) -> None:
    folders = [written(tmp_path / str(seed), seed) for seed in range(3)]
    samples = Tokens(IDS, DNA)
    alone = torch.stack([SequenceOracle(folder)(samples, PROMPTS) for folder in folders])
    oracle = SequenceOracle(folders)
    torch.testing.assert_close(oracle(samples, PROMPTS), alone.mean(0))
    torch.testing.assert_close(oracle.spread(samples, PROMPTS), alone.std(0, correction=0))
    assert oracle.spread(samples, PROMPTS).min() > 0
    assert SequenceOracle(folders[0]).spread(samples, PROMPTS).tolist() == [0] * 5


def test_symbols_count_and_not_their_numbers(tmp_path: Path) -> None:
    oracle = SequenceOracle(written(tmp_path))
    turned = Tokens(3 - IDS, DNA[::-1])
    torch.testing.assert_close(oracle(turned, PROMPTS), oracle(Tokens(IDS, DNA), PROMPTS))


def test_relaxed_tokens_get_a_gradient_and_the_network_none(tmp_path: Path) -> None:
    oracle = SequenceOracle(written(tmp_path))
    weights = torch.eye(4)[IDS].requires_grad_()
    scores = oracle(Tokens(weights, DNA), PROMPTS)
    torch.testing.assert_close(scores, oracle(Tokens(IDS, DNA), PROMPTS))
    (slope,) = torch.autograd.grad(scores.sum(), weights)
    assert bool((slope.abs().sum((1, 2)) > 0).all())
    direction = torch.randn(5, 16, 4, generator=stream(1))
    moved = (oracle(Tokens(weights + 1e-3 * direction, DNA), PROMPTS) - scores).detach()
    torch.testing.assert_close(moved, 1e-3 * (slope * direction).sum((1, 2)), rtol=0.1, atol=1e-4)


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    oracle = SequenceOracle([written(tmp_path / "a"), written(tmp_path / "b", 1)])
    check_reward(oracle, Tokens(IDS, DNA), PROMPTS)


def test_loading_draws_no_random_number(tmp_path: Path) -> None:
    folder = written(tmp_path)
    before = torch.random.get_rng_state()
    SequenceOracle(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_networks_that_differ_are_refused(tmp_path: Path) -> None:
    folders = [written(tmp_path / "a"), written(tmp_path / "b", length=20)]
    with pytest.raises(ValueError, match="differ in alphabet, length or tasks"):
        SequenceOracle(folders)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        SequenceOracle(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="at least one folder"):
        SequenceOracle([])
    with pytest.raises(ValueError, match="the tasks are 0 to 1"):
        SequenceOracle(written(tmp_path), task=2)


def test_other_samples_are_refused(tmp_path: Path) -> None:
    oracle = SequenceOracle(written(tmp_path))
    with pytest.raises(ValueError, match="ACGU"):
        oracle(Tokens(IDS, "ACGU"), PROMPTS)
    with pytest.raises(ValueError, match="expected rows"):
        oracle(Tokens(IDS[:, :15], DNA), PROMPTS)
    with pytest.raises(TypeError, match="scores Tokens"):
        oracle(Vectors(torch.zeros(5, 2)), PROMPTS)


def measured(fold: str) -> tuple[Tokens, torch.Tensor]:
    """Every tenth element of a fold, without its adapters, and its activity."""
    file = MEASURED / f"WTC11_{fold}.tsv"
    if not file.exists():
        pytest.skip(f"{file} is not here")
    lines = [line.split("\t") for line in file.read_text().splitlines()[1::10]]
    ids = torch.tensor(ids_of([sequence[15:-15] for sequence, _ in lines], DNA))
    return Tokens(ids, DNA), torch.tensor([float(value) for _, value in lines])


@pytest.mark.parametrize(
    ("name", "fold"), [("reward_oracle", "test"), ("evaluation_oracle", "valid")]
)
def test_bundled_oracles_predict_elements_that_they_have_not_seen(name: str, fold: str) -> None:
    samples, activity = measured(fold)
    oracle = SequenceOracle(str(ROOT / "assets/dna" / name))
    scores = oracle(samples, [""] * len(samples))
    # 0.55 on the whole fold, with a standard error of 0.03 on 462 sequences.
    assert torch.corrcoef(torch.stack([scores, activity]))[0, 1] > 0.43
    # In units of the labels, but drawn to their mean.
    assert abs(scores.mean() - activity.mean()) < 0.3


def test_the_bundled_classifier_ranks_active_elements_first() -> None:
    samples, activity = measured("valid")
    oracle = SequenceOracle(str(ROOT / "assets/dna/active_classifier"))
    log_odds = oracle(samples, [""] * len(samples))
    active = activity > 1.13
    above = (log_odds[active][:, None] > log_odds[~active]).float().mean()
    assert above > 0.7
    # A tenth is active, and few of the others are called so.
    assert (log_odds[~active] > 0).float().mean() < 0.1
