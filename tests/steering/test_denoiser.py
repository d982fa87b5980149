"""Networks see the rows that need them, in blocks, and their outputs are as if they saw all."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from steering.drop_in_cases import build, difference, energy, rows_of, steered
from torch import Tensor, nn
from zoo.check import entries

from diffreward.samples import Samples
from diffreward.steering import BestOfN, FKSteering, steer
from diffreward.steering.drop_in.denoiser import Watched, networks, replaced
from diffreward.steering.methods import ONCE
from diffreward.steering.resampling import Resampling

ENTRIES = {entry.name: entry for entry in entries()}
END_TO_END = [
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline-true-cfg",
    "WanPipeline",
    "LTXPipeline",
]


@cache
def pipeline(name: str) -> DiffusionPipeline:
    with TemporaryDirectory() as folder:
        return build(ENTRIES[name], Path(folder))


class Rowwise(nn.Module):
    """Mixes nothing between rows, and remembers how many it was given at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(
        self,
        sample: Tensor,
        timestep: Any = None,
        states: list[Tensor] | None = None,
        img_ids: Tensor | None = None,
        conditions: dict[str, Tensor] | None = None,
        return_dict: bool = False,
    ) -> Any:
        self.seen.append(len(sample))
        out = sample.sin()
        if timestep is not None and torch.is_tensor(timestep) and timestep.ndim:
            out = out + timestep[:, None]
        for state in states or []:
            out = out + state
        if img_ids is not None:
            out = out + img_ids.sum()
        if conditions is not None:
            out = out * conditions["scale"]
        return {"sample": out} if return_dict else (out, [2 * out])


def watched(rows: int, alike: list[int] | None = None) -> tuple[Watched, Rowwise]:
    """Of four particles."""
    module = Rowwise()
    told = None if alike is None else torch.tensor(alike)
    return Watched(module, 4, rows, lambda: told), module


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize(("rows", "sizes"), [(64, [4]), (4, [4]), (3, [3, 1]), (1, [1] * 4)])
def test_blocks_of_particles_give_what_the_whole_call_gives(
    rows: int, sizes: list[int], blocks: int
) -> None:
    """Guidance stacks blocks of all particles; each part has its rows of every block."""
    call, module = watched(rows)
    x, t = torch.randn(4 * blocks, 5), torch.arange(4.0 * blocks)
    more = {"states": [torch.randn(4 * blocks, 5)], "conditions": {"scale": t[:, None]}}
    expected = Rowwise()(x, t, **more)
    found = call(x, t, **more)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1][0], expected[1][0])
    assert torch.equal(call(x, t, **more, return_dict=True)["sample"], expected[0])
    assert module.seen == [size * blocks for size in sizes] * 2
    assert call.rows == 8


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_particles_that_are_alike_are_computed_once(rows: int) -> None:
    call, module = watched(rows, alike=[0, 1, 0, 1])
    x = torch.randn(2, 2, 5).repeat(1, 2, 1).flatten(0, 1)
    found = call(x)
    assert torch.equal(found[0], x.sin())
    assert sum(module.seen) == 4 and call.rows == 2


def test_a_particle_gets_the_output_of_the_one_that_it_goes_with() -> None:
    call, _ = watched(64, alike=[0, 0, 2, 2])
    x = torch.arange(4.0)[:, None]
    assert torch.equal(call(x)[0], torch.tensor([0.0, 0.0, 2.0, 2.0])[:, None].sin())


def test_arguments_that_rows_share_stay_whole() -> None:
    """Positions of four tokens, for four particles."""
    call, _ = watched(1)
    x, ids = torch.randn(4, 5), torch.arange(12.0).reshape(4, 3)
    assert torch.equal(call(x, img_ids=ids)[0], x.sin() + 66)
    scalar = torch.tensor(3.0)
    assert torch.equal(call(x, scalar)[0], x.sin())


def test_a_call_of_another_number_of_rows_is_left_alone() -> None:
    """Say, of the one picture that is encoded before the first step."""
    call, module = watched(1)
    x = torch.randn(6, 5)
    assert torch.equal(call(x)[0], x.sin())
    assert module.seen == [6]


def test_a_blank_output_looks_like_the_last_one() -> None:
    call, module = watched(64)
    assert not call.called
    call(torch.randn(8, 5))
    blank = call.blank(3, [torch.randn(6, 5)], {})
    assert blank[0].shape == blank[1][0].shape == (6, 5)
    assert call.called and module.seen == [8] and call.rows == 4


def test_a_blank_output_is_of_as_many_blocks_as_the_call() -> None:
    """LTX 2 stacks prompt and no prompt in one call, and perturbs the network in another."""
    call, _ = watched(64)
    call(torch.randn(8, 5))
    call(torch.randn(4, 5))
    for blocks in (1, 2):
        given = {"sample": torch.randn(3 * blocks, 5)}
        assert call.blank(3, [], given)[0].shape == (3 * blocks, 5)


def test_a_stand_in_leaves_the_module_alone() -> None:
    module = nn.Linear(2, 2)
    stand_in = replaced(module, lambda x: x + 1)
    assert type(stand_in) is nn.Linear and stand_in.weight is module.weight
    assert torch.equal(stand_in(torch.ones(1, 2)), torch.full((1, 2), 2.0))
    assert "forward" not in vars(module)


@pytest.mark.parametrize("name", END_TO_END)
def test_a_pipeline_gives_the_same_whatever_goes_through_at_a_time(name: str) -> None:
    pipe, call = pipeline(name), ENTRIES[name].call
    calls = rows_of(pipe, call, 1)
    whole, *parts = (
        steered(steer(pipe, energy, FKSteering(4, 10.0, interval=1), rows=rows), calls)
        for rows in (64, 3, 1)
    )
    assert all(difference(part, whole) <= 1e-4 for part in parts)


@pytest.mark.parametrize("name", END_TO_END)
def test_copies_go_through_the_network_once_until_they_part(name: str) -> None:
    """A deterministic sampler keeps the copies of the first particle alike to the end."""
    pipe, call = pipeline(name), ENTRIES[name].call
    first = Resampling(lambda w, _: torch.zeros(w.shape, dtype=torch.int64), False)
    once = FKSteering(4, 1.0, resampling=first, ess_threshold=1.0, interval=ONCE, start=0.5, stop=1)
    parting, alike = (steer(pipe, energy, once, eta=eta) for eta in (1.0, 0.0))
    steered(parting, call)
    outputs = steered(alike, call)
    visits, (selection, _) = len(alike.last.lineage), alike.last.history[0]
    blocks = parting.last.cost.network_rows // (4 * visits)
    assert parting.last.cost.network_rows == blocks * 4 * visits
    # The network has seen the state at which the selection is made before that.
    seen = 4 * (selection + 1) + (visits - selection - 1)
    assert alike.last.cost.network_rows == blocks * seen
    rewards = alike.last.rewards[0]
    assert torch.allclose(rewards, rewards[0].expand_as(rewards)) and outputs is not None


def test_dead_particles_are_not_computed() -> None:
    """Three of four get no score at the first state, and nobody goes on from them."""
    scored: list[int] = []

    def reward(samples: Samples, prompts: Any) -> Tensor:
        scored.append(len(prompts))
        values = energy(samples, prompts)
        return values.index_fill(0, torch.arange(1, 4), torch.nan) if len(scored) == 1 else values

    pipe, call = pipeline("StableDiffusionPipeline"), ENTRIES["StableDiffusionPipeline"].call
    never = FKSteering(4, 1.0, ess_threshold=0.0, interval=ONCE, start=0.0, stop=1.0)
    dead = steer(pipe, reward, never)
    output = steered(dead, call)
    visits = len(dead.last.lineage)
    assert dead.last.cost.network_rows == 4 + visits - 1
    assert dead.last.chosen.tolist() == [0] and dead.last.failures.tolist() == [3]
    living = steered(steer(pipe, energy, BestOfN(4)), call)
    assert difference(output.images[:1], living.images[:1]) <= 1e-5


def test_networks_are_found_by_what_diffusers_calls_them() -> None:
    assert list(networks(pipeline("StableDiffusionPipeline"))) == ["unet"]
    assert list(networks(pipeline("WanPipeline"))) == ["transformer"]
