"""The update of DRAKES does what the released structure does, with less."""

from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def cost() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        import cost_drakes

        return cost_drakes


@pytest.fixture(scope="module")
def rows(cost: ModuleType) -> dict[str, object]:
    load = cost.Load(samples=2, length=20, hidden=8, stacks=1, steps=13, soft=5)
    return {row.name: row for row in cost.measure(load, 0)}


def test_all_implementations_have_the_same_gradient(rows) -> None:
    assert max(row.error for row in rows.values()) < 1e-5


def test_a_quarter_of_the_graph_is_left_and_less_with_checkpoints(rows) -> None:
    graphs = [row.graph for row in rows.values()]
    assert graphs[1] < graphs[0] / 4 and graphs[2] < graphs[1] / 2


def test_evaluations_are_counted_by_hand(rows) -> None:
    released, kept, checkpointed = (row.evaluations for row in rows.values())
    # 13 steps of two samples: drawn, and seen again by both networks.
    assert released == 3 * 13 * 2
    # 5 steps of both networks, and at most 8 before; checkpointed, the policy's once more.
    assert 5 * 2 * 2 < kept <= (8 + 5 * 2) * 2
    assert checkpointed == kept + 5 * 2


def test_every_row_has_the_columns_of_the_table(cost: ModuleType, rows) -> None:
    first = next(iter(rows.values()))
    first.seconds.append(1.0)
    assert cost.line(first, first).count("|") == cost.HEADER.count("|")
