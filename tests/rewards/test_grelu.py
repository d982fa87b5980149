"""GReLU against a stand-in of the package with its documented interface: it is not installed."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffreward.alphabets import DNA
from diffreward.rewards.grelu import GReLU
from diffreward.samples import Tokens

IDS = torch.tensor([[0, 1, 2, 3, 0, 0], [3, 3, 3, 3, 2, 1]])
PROMPTS = ["", ""]


class LightningModel(nn.Module):
    """Counts bases: (N, 4, L) to (N, tasks, bins), task t weighs base b by weight[t, b]."""

    def __init__(self, model_params: dict[str, Any], train_params: dict[str, Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(model_params["n_tasks"], 4))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(torch.einsum("nbl,tb->ntl", x, self.weight))


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("grelu.lightning")
    vars(module)["LightningModel"] = LightningModel
    monkeypatch.setitem(sys.modules, "grelu", ModuleType("grelu"))
    monkeypatch.setitem(sys.modules, "grelu.lightning", module)


def checkpoint(folder: Path, **more: Any) -> str:
    # As old versions wrote it: without data_params.
    parameters = {"model_params": {"n_tasks": 2}, "train_params": {"task": "regression"}}
    weight = torch.tensor([[1.0, 0, 0, 0], [0, 10, 20, 30]])
    state = {"hyper_parameters": parameters, "state_dict": {"weight": weight}, **more}
    torch.save(state, folder / "oracle.ckpt")
    return str(folder / "oracle.ckpt")


def test_bases_are_in_the_order_that_the_package_has(tmp_path: Path) -> None:
    file = checkpoint(tmp_path)
    # Task 0 is the share of A; task 1 the mean of 10 C + 20 G + 30 T.
    torch.testing.assert_close(GReLU(file)(Tokens(IDS, DNA), PROMPTS), torch.tensor([3 / 6, 0]))
    expected = torch.tensor([60 / 6, 150 / 6])
    torch.testing.assert_close(GReLU(file, 1)(Tokens(IDS, DNA), PROMPTS), expected)
    torch.testing.assert_close(GReLU(file, 1)(Tokens(3 - IDS, DNA[::-1]), PROMPTS), expected)


def test_relaxed_tokens_get_a_gradient_and_the_model_none(tmp_path: Path) -> None:
    weights = torch.eye(4)[IDS].requires_grad_()
    GReLU(checkpoint(tmp_path), 1)(Tokens(weights, DNA), PROMPTS).sum().backward()
    assert weights.grad is not None
    torch.testing.assert_close(weights.grad[0, 0] * 6, torch.tensor([0.0, 10, 20, 30]))


def test_loading_draws_no_random_number(tmp_path: Path) -> None:
    file, before = checkpoint(tmp_path), torch.random.get_rng_state()
    GReLU(file)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_only_trusted_files_may_run_code(tmp_path: Path) -> None:
    file = checkpoint(tmp_path, performance={"mse": np.float64(0.5)})
    with pytest.raises(ValueError, match="trusted=True"):
        GReLU(file)
    assert GReLU(file, trusted=True)(Tokens(IDS, DNA), PROMPTS).shape == (2,)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the tasks are 0 to 1, got 2"):
        GReLU(checkpoint(tmp_path), 2)(Tokens(IDS, DNA), PROMPTS)
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        GReLU(str(tmp_path / "none.ckpt"))
    torch.save({"weight": torch.zeros(1)}, tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="lacks 'hyper_parameters'"):
        GReLU(str(tmp_path / "plain.ckpt"))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grelu.lightning", None)
    with pytest.raises(ImportError, match="pip install grelu"):
        GReLU(checkpoint(tmp_path))
