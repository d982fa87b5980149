"""The benchmark of set rewards times equal things."""

from pathlib import Path
from types import ModuleType

import pytest

from diffreward.frechet import as_gaussian
from diffreward.moments import Moments


@pytest.fixture(scope="module")
def cost() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        import cost_sets

        return cost_sets


def test_both_ways_find_the_same_distance(cost: ModuleType) -> None:
    rows, target = cost.draw(30, 8, 1), as_gaussian(Moments.of(cost.draw(80, 8, 2)))
    assert cost.published(rows, target) == pytest.approx(float(target.distance(rows)), rel=1e-8)


def test_every_task_has_a_line(cost: ModuleType) -> None:
    lines = cost.report(12, 4).splitlines()
    names = [name for name, _, _ in cost.tasks(12, 4)]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[4:]] == names
    assert lines[4].endswith("| 1.0 |")
