"""Every pipeline of the zoo, steered: nothing changes that should not, and all that should does."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from steering.drop_in_cases import (
    ROUNDING,
    UNSUPPORTED,
    build,
    difference,
    energy,
    looking,
    plain,
    reversing,
    rows_of,
    steered,
    turned_difference,
)
from torch import Tensor
from zoo.check import entries

from diffreward.steering import FKSteering, steer

ALL = {entry.name: entry for entry in entries()}
SUPPORTED = [name for name in ALL if name not in UNSUPPORTED]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Builds each pipeline once."""
    kept: dict[str, DiffusionPipeline] = {}

    def get(name: str) -> DiffusionPipeline:
        if name not in kept:
            kept.clear()
            kept[name] = build(ALL[name], tmp_path_factory.mktemp("zoo"))
        return kept[name]

    return get


@pytest.fixture
def tied_noise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stochastic schedulers draw the same noise for every row, so that rows can be compared."""

    def tie(draw: Any) -> Any:
        def tied(shape: Any, *args: Any, **kwargs: Any) -> Tensor:
            return draw((1, *shape[1:]), *args, **kwargs).expand(*shape).clone()

        return tied

    for name, module in list(sys.modules.items()):
        if name.startswith("diffusers.schedulers.") and hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", tie(module.randn_tensor))
    yield


def fingerprint(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Everything that a pipeline and its scheduler are, by identity or by value."""
    attributes = {name: (id(value), type(value)) for name, value in vars(pipe).items()}
    inside = {name: repr(value) for name, value in vars(pipe.scheduler).items()}
    modes = {
        f"{name}.{key}": (p.requires_grad, p._version, p.data_ptr())
        for name, module in pipe.components.items()
        if isinstance(module, torch.nn.Module)
        for key, p in module.named_parameters()
    }
    forwards = {
        name: "forward" in vars(module)
        for name, module in pipe.components.items()
        if isinstance(module, torch.nn.Module)
    }
    return {"attributes": attributes, "scheduler": inside, "weights": modes, "forward": forwards}


@pytest.mark.parametrize("name", SUPPORTED)
def test_looking_changes_nothing_and_particles_keep_what_is_theirs(
    name: str, made: Any, tied_noise: None
) -> None:
    """Scale 0 is the plain call bit for bit; turned round on their way, so is the result.

    Reordering carries the solver's memory, guidance and conditions along, so that nothing but
    rounding is left.
    """
    pipe, call = made(name), ALL[name].call
    expected = plain(pipe, rows_of(pipe, call, 2))
    before = fingerprint(pipe)
    looked = steered(steer(pipe, energy, looking(2)), call)
    turned = steered(steer(pipe, energy, reversing(2, at=0.4), eta=0.0), call)
    assert fingerprint(pipe) == before
    assert difference(looked, expected) == 0
    assert turned_difference(turned, expected) <= ROUNDING.get(name, 0)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_steered_says_why(name: str, made: Any) -> None:
    pipe = made(name)
    before = fingerprint(pipe)
    with pytest.raises((ValueError, TypeError), match=UNSUPPORTED[name]):
        steered(steer(pipe, energy, FKSteering(2)), ALL[name].call)
    assert fingerprint(pipe) == before


def test_the_zoo_is_large_enough() -> None:
    classes = {name.split("-")[0] for name in SUPPORTED}
    assert len(classes) >= 90
    assert {ALL[name].medium for name in SUPPORTED} >= {"images", "videos", "audio"}
