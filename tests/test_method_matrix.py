"""Every method trains every family, or says why it cannot: see matrix.py."""

from pathlib import Path

import matrix
import pytest
from sequence_families import ROWS as SEQUENCES

from diffreward.algorithm import Algorithm
from diffreward.checks import TrainingError

METHODS = matrix.methods()
DEFINED = [
    pytest.param(method, row, id=f"{method.__name__}-{row.name}")
    for method in METHODS
    for row in matrix.ROWS
    if row not in SEQUENCES or method.__name__ not in matrix.REFUSALS
]
REFUSED = [method for method in METHODS if method.__name__ in matrix.REFUSALS]


@pytest.mark.parametrize(("method", "row"), DEFINED)
def test_two_updates_of(method: type[Algorithm], row: matrix.Row, tmp_path: Path) -> None:
    assert matrix.cell(method, row, tmp_path).faults == []


@pytest.mark.parametrize("row", SEQUENCES, ids=lambda row: row.name)
@pytest.mark.parametrize("method", REFUSED, ids=lambda method: method.__name__)
def test_what_needs_states_that_are_numbers_refuses_symbols(
    method: type[Algorithm], row: matrix.Row, tmp_path: Path
) -> None:
    with pytest.raises((TypeError, TrainingError), match=matrix.REFUSALS[method.__name__]):
        matrix.cell(method, row, tmp_path)


def test_every_refusal_is_that_of_a_method() -> None:
    assert set(matrix.REFUSALS) == {method.__name__ for method in REFUSED}
