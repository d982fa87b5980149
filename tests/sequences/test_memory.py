"""What a network has said of a sequence is asked once; and what that saves while samplers run."""

from contextlib import AbstractContextManager

import pytest
import torch
from sequence_world import Counted, Rows, table_world, tempting
from torch import Tensor

from diffreward.diffusion import Diffusion, Spared, draw, rollout
from diffreward.enumeration import number
from diffreward.pipelines.enumerable import TableReward
from diffreward.pipelines.masked_diffusion import MaskedDiffusion
from diffreward.random import stream
from diffreward.rewards.cached import Cached
from diffreward.sequences import memory
from diffreward.sequences.memory import Memory
from diffreward.steering import SVDD, BestOfN, FKSteering, SteeringMethod, steer_diffusion

IDS = torch.tensor([[0, 1], [2, 2], [0, 1], [1, 0]])


class Recording:
    """A network that says of a sequence its symbols, and notes who asked."""

    def __init__(self, ids: Tensor) -> None:
        self.ids, self.asked = ids, []

    def __call__(self, rows: Tensor) -> Tensor:
        self.asked += self.ids[rows].tolist()
        return self.ids[rows, :, None].float() + torch.tensor([0.0, 10.0])


def test_each_sequence_is_evaluated_once_and_answers_are_in_order() -> None:
    spared = Spared()
    remembered, network = Memory(spared), Recording(IDS)
    expected = IDS[..., None] + torch.tensor([0.0, 10.0])
    assert torch.equal(remembered.recall(IDS, [""] * 4, network), expected)
    assert sorted(network.asked) == [[0, 1], [1, 0], [2, 2]]
    assert spared.rows == 1
    order = torch.tensor([3, 1, 1, 0, 2])
    assert torch.equal(remembered.recall(IDS[order], [""] * 5, network), expected[order])
    assert len(network.asked) == 3
    assert spared.rows == 6


def test_the_same_sequence_under_another_prompt_is_another() -> None:
    remembered, network = Memory(Spared()), Recording(IDS)
    remembered.recall(IDS, ["a", "a", "b", "a"], network)
    assert len(network.asked) == 4


def test_the_latest_are_kept_when_memory_is_short(monkeypatch) -> None:
    # Two answers of 2 x 2 numbers in float32.
    monkeypatch.setattr(memory, "_MOST_BYTES", 32)
    remembered, network = Memory(Spared()), Recording(IDS)

    def ask(row: int) -> None:
        network.ids = IDS[row : row + 1]
        remembered.recall(network.ids, [""], network)

    for row in (0, 1, 0, 3, 0, 1):
        ask(row)
    # When [1, 0] came, [2, 2] had not been asked for the longest, and so came again.
    assert network.asked == [[0, 1], [2, 2], [1, 0], [2, 2]]
    # A batch is never too large to be answered.
    network.ids = IDS
    found = remembered.recall(IDS, [""] * 4, network)
    assert torch.equal(found[..., 0], IDS.float())


class Forgetful(MaskedDiffusion):
    """Evaluates its network whenever it is asked."""

    def remembering(self) -> AbstractContextManager[Spared]:
        return Diffusion.remembering(self)


def pair(num_steps: int = 12) -> tuple[MaskedDiffusion, Forgetful]:
    """The same model with and without memory."""
    world = table_world(symbols=3, length=4, num_steps=num_steps)
    return world, Forgetful(world.pipeline, num_steps)


def test_samples_are_the_same_with_and_without_memory() -> None:
    world, forgetful = pair()
    prompts = ["", "_A__", "C__G"] * 20
    found = []
    for model in (world, forgetful):
        rows = Rows(model.network)
        path = rollout(model, model.encode(prompts), None, [stream(i) for i in range(60)], rows=7)
        found.append((path.states, path.log_probs, rows.count))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0)
    assert found[0][2] < found[1][2] / 3


def test_a_plain_sampler_evaluates_each_state_that_comes_up_once() -> None:
    """At most one evaluation per reveal and sequence, however many steps there are."""
    world, _ = pair(num_steps=40)
    rows = Rows(world.network)
    for seed in range(5):
        rows.seen.clear()
        path = rollout(world, world.encode([""]), None, stream(seed))
        moved = path.states[0, 1:] != path.states[0, :-1]
        events = int(moved.any(1).sum())
        # The last event leaves nothing to ask, unless steps follow that ask about the clean state.
        assert events <= rows.count <= events + 1
    rows.seen.clear()
    path = rollout(world, world.encode([""] * 30), None, stream(9), rows=30)
    assert rows.count == len(path.states[:, :-1].flatten(0, 1).unique(dim=0))
    assert rows.count < 30 * 40 / 5


def test_outside_of_a_run_nothing_is_remembered() -> None:
    world, _ = pair()
    rows, x, condition = Rows(world.network), world.prior(3), world.encode([""] * 3)
    for _ in range(2):
        with torch.no_grad():
            world.step(x, 0, condition)
    assert rows.count == 6
    with world.remembering() as spared:
        world.step(x, 0, condition)  # with a gradient
        assert rows.count == 9
        with torch.no_grad():
            world.step(x, 0, condition)
            world.step(x, 1, condition)
        assert rows.count == 10
        assert spared.rows == 5


def test_new_weights_are_seen_by_the_next_run() -> None:
    world, _ = pair()
    condition = world.encode([""] * 50)
    before = draw(world, condition, None, stream(0))
    with torch.no_grad():
        world.network.table[..., 0] += 50
    assert bool((draw(world, condition, None, stream(0)) == 0).all())
    assert not bool((before == 0).all())


METHODS: dict[str, SteeringMethod] = {
    "SVDD": SVDD(6, scale=5.0),
    "FK": FKSteering(6, scale=5.0, interval=1),
    "best of N": BestOfN(6),
}


@pytest.mark.parametrize("name", METHODS)
def test_steering_is_the_same_with_and_without_memory_and_with_a_cached_reward(name: str) -> None:
    """Each distinct state is evaluated once, each distinct sequence scored once: the minimum."""
    world, forgetful = pair()
    reward, prompts = TableReward(tempting(3, 4)), ["", "_A__"] * 3
    naive_oracle, oracle, rows = Counted(reward), Counted(reward), Rows(world.network)
    naive = steer_diffusion(forgetful, naive_oracle, prompts, METHODS[name], seed=3)
    naive_rows, seen = rows.count, torch.cat(rows.seen)
    rows.seen.clear()
    found = steer_diffusion(world, Cached(oracle), prompts, METHODS[name], seed=3)
    assert torch.equal(found.particles.ids, naive.particles.ids)
    assert torch.equal(found.rewards, naive.rewards)
    assert torch.equal(found.chosen, naive.chosen)
    assert naive_rows == 12 * 36 == naive.cost.network_rows
    # The answers under "" and under "_A__" are kept apart; states under them overlap.
    assert len(seen.unique(dim=0)) <= rows.count == found.cost.network_rows
    assert rows.count <= 2 * len(seen.unique(dim=0))
    assert rows.count < naive_rows / 2
    judged = set(number(naive.particles.ids, 3).tolist())
    assert len(judged) <= oracle.count <= 81
    assert oracle.count < naive_oracle.count


def test_a_step_of_svdd_asks_only_about_new_candidates() -> None:
    """Rows per step: the distinct candidates, less those that were seen before."""
    world, _ = pair()
    rows = Rows(world.network)
    found = steer_diffusion(
        world, TableReward(tempting(3, 4)), [""], SVDD(8, scale=5.0), seed=1, rows=8
    )
    known: set[int] = set()
    for asked in rows.seen:
        numbers = number(asked, 4).tolist()
        assert len(set(numbers)) == len(numbers)
        assert not known & set(numbers)
        known |= set(numbers)
    assert rows.count == len(known) == found.cost.network_rows


def test_the_oracle_is_asked_once_for_each_sequence_that_svdd_considers() -> None:
    world, forgetful = pair()
    considered: set[int] = set()

    def reward(samples, prompts):
        considered.update(number(samples.ids, 3).tolist())
        return TableReward(tempting(3, 4))(samples, prompts)

    steer_diffusion(forgetful, reward, [""] * 4, SVDD(8, scale=5.0), seed=2)
    oracle = Counted(TableReward(tempting(3, 4)))
    steer_diffusion(world, Cached(oracle), [""] * 4, SVDD(8, scale=5.0), seed=2)
    assert oracle.count == len(considered)
