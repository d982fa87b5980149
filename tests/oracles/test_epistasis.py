from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffreward.oracles.epistasis import GlobalEpistasis, fit_epistasis
from diffreward.oracles.training import pearson
from diffreward.random import stream

LETTERS, WILD_TYPE = "ABCD", "AAAAAAAA"


def network(**options: Any) -> GlobalEpistasis:
    """One whose effects and curves are all different."""
    made = GlobalEpistasis(WILD_TYPE, LETTERS, **options)
    for i, parameter in enumerate(made.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=stream(i, "parameters"))
    return made.eval()


def variants(n: int, seed: int = 0) -> Tensor:
    """Each letter of the wild type mutated with probability 1/4."""
    ids = torch.randint(1, 4, (n, 8), generator=stream(seed, "letters"))
    return ids * (torch.rand(n, 8, generator=stream(seed, "places")) < 0.25)


def rows(ids: Tensor) -> Tensor:
    return F.one_hot(ids, 4).float()


def test_the_prediction_is_the_curve_at_the_sum_of_effects() -> None:
    made = GlobalEpistasis(WILD_TYPE, LETTERS, (10.0,), (2.0,), sigmoids=1)
    made.effects.data[0, :, 0] = torch.tensor([0.5, -1.0, 0.0, 0.0])
    made.effects.data[3, :, 0] = torch.tensor([0.0, 0.0, 2.0, 0.0])
    made.floors.data[:], made.heights.data[:] = -1.0, 3.0
    made.slopes.data[:], made.centres.data[:] = 0.7, 0.2
    found = made(rows(torch.tensor([[1, 0, 0, 2, 0, 0, 0, 0]])))
    trait = (-1.0 - 0.5) + (2.0 - 0.0)
    slope, height = F.softplus(torch.tensor(0.7)), F.softplus(torch.tensor(3.0))
    expected = 10 + 2 * (-1 + height * torch.sigmoid(slope * (trait - 0.2)))
    torch.testing.assert_close(found, expected.reshape(1, 1))


def test_the_wild_type_has_the_trait_zero_and_traits_add_up() -> None:
    made = network(means=(0.0, 1.0), stds=(1.0, 2.0))
    single, other = torch.zeros(2, 1, 8, dtype=torch.int64)
    single[0, 2], other[0, 5] = 3, 1
    assert made.traits(rows(torch.zeros(1, 8, dtype=torch.int64))).tolist() == [[0, 0]]
    torch.testing.assert_close(
        made.traits(rows(single + other)), made.traits(rows(single)) + made.traits(rows(other))
    )


def test_predictions_rise_with_their_trait() -> None:
    made = network(means=(0.0, 1.0), stds=(1.0, 2.0))
    samples = rows(variants(300))
    traits, predictions = made.traits(samples), made(samples)
    for task in (0, 1):
        sorted_by_trait = predictions[traits[:, task].argsort(), task]
        assert (sorted_by_trait.diff() >= -1e-6).all()
        assert sorted_by_trait[-1] > sorted_by_trait[0]


def test_a_relaxed_letter_has_the_mean_of_the_traits() -> None:
    made = network()
    first, second = rows(variants(5)), rows(variants(5, 1))
    mixed = made.traits(0.3 * first + 0.7 * second)
    torch.testing.assert_close(mixed, 0.3 * made.traits(first) + 0.7 * made.traits(second))


def test_the_fit_predicts_variants_that_it_has_not_seen() -> None:
    truth = network(means=(3.0,), stds=(0.5,))
    seen, fresh = variants(1500), variants(400, 1)
    with torch.no_grad():
        labels, wanted = truth(rows(seen)), truth(rows(fresh))
    fitted = GlobalEpistasis(WILD_TYPE, LETTERS, (labels.mean().item(),), (labels.std().item(),))
    error = fit_epistasis(fitted, seen, labels, epochs=40, decay=0.01)
    with torch.no_grad():
        assert pearson(fitted(rows(fresh)), wanted).item() > 0.98
    assert error < 0.05 and not fitted.training


def test_an_unseen_mutation_has_part_of_the_mean_effect_at_its_position() -> None:
    seen = variants(1000)
    seen[:, 2] = 0
    seen[seen[:, 1] == 3, 1] = 1
    labels = -(seen[:, 1:2] > 0).float()
    fitted = GlobalEpistasis(WILD_TYPE, LETTERS, (labels.mean().item(),), (labels.std().item(),))
    fit_epistasis(fitted, seen, labels)
    letters = torch.zeros(3, 8, dtype=torch.int64)
    letters[0, 1], letters[1, 1], letters[2, 2] = 1, 3, 1
    known, unseen, nowhere = fitted.traits(rows(letters))[:, 0].tolist()
    assert known < unseen < 0.1 * known < 0
    assert nowhere == 0


def test_decay_draws_the_effects_and_nothing_else() -> None:
    seen, labels = variants(128), torch.zeros(128, 1)
    drawn, free = network(), network()
    # Labels that are the predictions have no gradient: what changes is decay.
    with torch.no_grad():
        labels = drawn(rows(seen))
    fit_epistasis(drawn, seen, labels, epochs=1, rate=1e-2, decay=10.0)
    for name, parameter in drawn.named_parameters():
        before = free.get_parameter(name)
        if name == "effects":
            assert (parameter.abs() < before.abs()).all()
        else:
            assert torch.equal(parameter, before)


def test_a_folder_gives_the_same_network(tmp_path: Path) -> None:
    made = network(means=(3.1,), stds=(1.12,), sigmoids=2)
    made.save_pretrained(tmp_path)
    again = GlobalEpistasis.from_pretrained(tmp_path)
    assert again.config.wild_type == WILD_TYPE and again.config.alphabet == LETTERS
    assert torch.equal(again.eval()(rows(variants(5))), made(rows(variants(5))))


@pytest.mark.parametrize("shape", [(5, 7, 4), (5, 8, 5), (8, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected rows \(B, 8, 4\)"):
        network()(torch.zeros(shape))


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="not among ABCD"):
        GlobalEpistasis("AXA", LETTERS)
    for means, stds in (((0.0, 1.0), (1.0,)), ((0.0,), (0.0,)), ((), ())):
        with pytest.raises(ValueError, match="expected one std > 0"):
            GlobalEpistasis("AAA", LETTERS, means, stds)
    with pytest.raises(ValueError, match="5 variants and 4 labels"):
        fit_epistasis(network(), variants(5), torch.zeros(4, 1))
