"""`diffreward.gathering`: with one process here, with two in the slow test of sets."""

import torch

from diffreward.gathering import gathered, gathered_rows


def test_one_process_has_its_own_values() -> None:
    assert gathered("mine") == (["mine"], 0)


def test_one_process_has_its_own_rows_with_their_graph() -> None:
    rows = torch.zeros(3, 2, requires_grad=True)
    everyone, own = gathered_rows(rows)
    assert own == slice(0, 3)
    everyone[own].sum().backward()
    assert rows.grad is not None and bool((rows.grad == 1).all())
