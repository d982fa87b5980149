"""What the processes of a run have, gathered: values of any kind, and rows of tensors.

Not by accelerate, which, asked before a run has begun, settles that there is one process.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


def gathered(value: Value) -> tuple[list[Value], int]:
    """The values of all processes of a run in their order, and which is this one's.

    All processes call it at the same time. Without a run of several there is this value only.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value], 0
    values = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values, torch.distributed.get_rank()


def gathered_rows(rows: Tensor) -> tuple[Tensor, slice]:
    """The rows of all processes, (M, ...), and where those of this one are, which keep their graph.

    All processes call it at the same time. Each may have another number of rows, or none.

    Args:
        rows: (N, ...), of this process.
    """
    parts, own = gathered(rows.detach().cpu())
    first = sum(len(part) for part in parts[:own])
    # The copy of this process's rows gives way to the rows themselves.
    everyone = [rows if i == own else part.to(rows) for i, part in enumerate(parts)]
    return torch.cat(everyone), slice(first, first + len(rows))
