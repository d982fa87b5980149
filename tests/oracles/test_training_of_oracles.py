import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffreward.alphabets import DNA
from diffreward.oracles.regressor import SequenceRegressor
from diffreward.oracles.training import Plan, pearson, predict, shifted, split, train_regressor
from diffreward.random import stream


def test_a_shift_moves_symbols_and_brings_in_unknown_ones() -> None:
    rows = torch.eye(6)[None].repeat(200, 1, 1)
    moved = shifted(rows, 2, stream(0))
    padded = F.pad(torch.eye(6), (0, 0, 2, 2))
    places = [next(s for s in range(5) if torch.equal(m, padded[s : s + 6])) for m in moved]
    assert set(places) == {0, 1, 2, 3, 4}
    assert torch.equal(shifted(rows, 0, stream(0)), rows)


def test_what_belongs_together_is_on_one_side() -> None:
    groups = [f"element {i // 2}" for i in range(40)]
    train, held = split(groups, 0.25, seed=3)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(40))
    assert len(held) == 10
    assert not {groups[i] for i in train} & {groups[i] for i in held}
    assert not torch.equal(held, split(groups, 0.25, seed=4)[1])


def test_a_side_without_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves a side empty"):
        split(["a", "b"], 0.1, seed=0)


def test_correlations_are_those_of_columns() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, -2.0]])
    y = torch.tensor([[1.0, 5.0], [3.0, 6.0], [5.0, 1.0]])
    found = pearson(x, y)
    torch.testing.assert_close(found[0].item(), 1.0)
    torch.testing.assert_close(found[1], torch.corrcoef(torch.stack([x[:, 1], y[:, 1]]))[0, 1])


def test_training_finds_a_motif_that_decides() -> None:
    # Activity is one letter's pair at any place: no symbol alone tells it.
    ids = torch.randint(4, (600, 20), generator=stream(0))
    motif = (ids[:, :-1] == 1) & (ids[:, 1:] == 2)
    labels = motif.float().sum(1, keepdim=True) * 2 - 3
    rows = F.one_hot(ids, 4).float()
    network = trained(rows, labels, Plan(epochs=8, rate=1e-2, batch=32, shift=0))
    fresh = torch.randint(4, (300, 20), generator=stream(1))
    wanted = ((fresh[:, :-1] == 1) & (fresh[:, 1:] == 2)).float().sum(1, keepdim=True) * 2 - 3
    predictions = predict(network, F.one_hot(fresh, 4).float())
    assert pearson(predictions, wanted).item() > 0.9
    assert (predictions - wanted).abs().mean() < 0.8
    assert not network.training


def trained(rows: Tensor, labels: Tensor, plan: Plan) -> SequenceRegressor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SequenceRegressor(
            DNA,
            rows.shape[1],
            means=(labels.mean().item(),),
            stds=(labels.std().item(),),
            channels=16,
            blocks=1,
            dropout=0.0,
        )
        train_regressor(network, rows, labels, range(len(rows)), plan)
    return network


def test_the_network_is_left_as_it_was_at_its_best_epoch() -> None:
    # Labels without pattern: the best epoch is some early one.
    ids = torch.randint(4, (64, 12), generator=stream(2))
    rows, labels = F.one_hot(ids, 4).float(), torch.randn(64, 1, generator=stream(3))
    plan = Plan(epochs=12, batch=16, rate=5e-3, shift=1, patience=3, validation=0.25)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SequenceRegressor(DNA, 12, channels=8, blocks=1, both_strands=True)
        start = copy.deepcopy(network.state_dict())
        fit = train_regressor(network, rows, labels, range(64), plan)
    assert len(fit.validation) - 1 in (fit.best_epoch + plan.patience, plan.epochs - 1)
    assert fit.validation[fit.best_epoch] == max(fit.validation)
    held = split(range(64), 0.25, plan.seed)[1]
    now = pearson(predict(network, rows[held]), labels[held]).item()
    torch.testing.assert_close(now, max(fit.validation))
    assert any(not torch.equal(start[name], x) for name, x in network.state_dict().items())


def test_equal_seeds_give_equal_weights() -> None:
    ids = torch.randint(4, (40, 12), generator=stream(4))
    rows, labels = F.one_hot(ids, 4).float(), torch.randn(40, 1, generator=stream(5))
    first, same, other = (
        trained(rows, labels, Plan(epochs=2, batch=16, seed=seed)).state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_lengths_that_differ_are_refused() -> None:
    network = SequenceRegressor(DNA, 12, channels=8, blocks=1)
    with pytest.raises(ValueError, match="got 4 rows, 3 labels and 4 groups"):
        train_regressor(network, torch.zeros(4, 12, 4), torch.zeros(3, 1), range(4))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch", 0),
        ("patience", 0),
        ("shift", -1),
        ("validation", 0.0),
        ("validation", 1.0),
    ],
)
def test_impossible_plans_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="got"):
        Plan(**{name: value})
