"""Enformer against a stand-in of enformer-pytorch with its interface: it is not installed."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffreward.alphabets import DNA
from diffreward.random import stream
from diffreward.rewards.enformer import Enformer
from diffreward.samples import Tokens


class Counting(nn.Module):
    """Track t counts base t in each bin of 128; what is unknown is no base."""

    def __init__(self, target_length: int) -> None:
        super().__init__()
        self.target_length = target_length
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, head: str) -> Tensor:
        assert head == "human" and self.target_length == -1 and x.ndim == 3 and x.shape[2] == 4
        return x.unflatten(1, (-1, 128)).sum(2) * self.scale


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_pretrained(name: str, **options: Any) -> nn.Module:
        return Counting(**options)

    module = ModuleType("enformer_pytorch")
    vars(module)["from_pretrained"] = from_pretrained
    monkeypatch.setitem(sys.modules, "enformer_pytorch", module)


@pytest.mark.parametrize(("length", "bins"), [(100, 2), (128, 2), (200, 2), (300, 4), (1024, 8)])
def test_the_score_is_of_the_bins_that_the_sequence_touches(length: int, bins: int) -> None:
    ids = torch.randint(4, (3, length), generator=stream(length))
    scores = Enformer([0, 3], length=1024)(Tokens(ids, DNA), [""] * 3)
    expected = ((ids == 0) | (ids == 3)).float().sum(1) / (2 * bins)
    torch.testing.assert_close(scores, expected)


def test_relaxed_tokens_get_a_gradient_and_the_network_none() -> None:
    reward = Enformer([2], length=512)
    weights = torch.full((1, 200, 4), 0.25, requires_grad=True)
    reward(Tokens(weights, DNA), [""]).sum().backward()
    assert weights.grad is not None
    assert (weights.grad != 0).sum((0, 1)).tolist() == [0, 0, 200, 0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a positive multiple of 128"):
        Enformer([0], length=200)
    with pytest.raises(ValueError, match="expected a track"):
        Enformer([])
    with pytest.raises(ValueError, match="reads 256 bp, got 300"):
        Enformer([0], length=256)(Tokens(torch.zeros(1, 300, dtype=torch.long), DNA), [""])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "enformer_pytorch", None)
    with pytest.raises(ImportError, match="pip install enformer-pytorch"):
        Enformer([0])
