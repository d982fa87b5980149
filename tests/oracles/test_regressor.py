from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffreward.alphabets import DNA, PROTEIN
from diffreward.oracles.regressor import SequenceRegressor, reverse_complement
from diffreward.random import stream


def regressor(**options: Any) -> SequenceRegressor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"alphabet": DNA, "length": 16, "channels": 8, "blocks": 2} | options
        return SequenceRegressor(**options).eval()


def rows(n: int = 5, length: int = 16, symbols: int = 4) -> Tensor:
    ids = torch.randint(symbols, (n, length), generator=stream(n, length))
    return torch.nn.functional.one_hot(ids, symbols).float()


def test_the_other_strand_is_read_backwards_in_complements() -> None:
    strand = torch.eye(4)[[DNA.index(base) for base in "AACGT"]][None]
    turned = "".join(DNA[i] for i in reverse_complement(strand)[0].argmax(1))
    assert turned == "ACGTT"


def test_both_strands_score_alike_if_both_are_read() -> None:
    both, one = regressor(both_strands=True), regressor()
    torch.testing.assert_close(both(rows()), both(reverse_complement(rows())))
    assert (one(rows()) - one(reverse_complement(rows()))).abs().max() > 1e-3
    mean = (one(rows()) + one(reverse_complement(rows()))) / 2
    torch.testing.assert_close(both(rows()), mean)


def test_outputs_are_in_the_units_of_the_labels() -> None:
    plain = regressor(tasks=("a", "b"), means=(0, 0), stds=(1, 1))
    scaled = regressor(tasks=("a", "b"), means=(3, -1), stds=(2, 10))
    expected = torch.tensor([3.0, -1.0]) + torch.tensor([2.0, 10.0]) * plain(rows())
    torch.testing.assert_close(scaled(rows()), expected)


def test_a_folder_gives_the_same_network(tmp_path: Path) -> None:
    network = regressor(means=(-0.57,), stds=(1.12,), both_strands=True)
    network.save_pretrained(tmp_path)
    again = SequenceRegressor.from_pretrained(tmp_path)
    assert again.config.alphabet == DNA and again.config.length == 16
    assert torch.equal(again.eval()(rows()), network(rows()))


def test_protein_goes_through_as_well() -> None:
    network = regressor(alphabet=PROTEIN, length=237)
    assert network(rows(2, 237, 20)).shape == (2, 1)


@pytest.mark.parametrize("shape", [(5, 15, 4), (5, 16, 5), (16, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected rows \(B, 16, 4\)"):
        regressor()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"means": (0.0, 1.0)}, "one mean"),
        ({"stds": (0.0,)}, "above 0"),
        ({"tasks": (), "means": (), "stds": ()}, "a task"),
        ({"length": 3}, "need a length of 4"),
        ({"alphabet": PROTEIN, "both_strands": True}, "reverse complement"),
    ],
)
def test_impossible_networks_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regressor(**options)
