"""Random numbers that belong to a chain, not to a batch.

Every draw in this package takes its `Source` as an argument: one generator for the whole batch, or
one generator per chain (the convention of diffusers). With one generator per chain, made by
`stream` from a seed and the chain's coordinates, a chain gets the same noise whatever the batch
size, the order of the rows and the number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

Source = Generator | Sequence[Generator] | None
"""One generator for all rows, one per row, or None for torch's global generator."""


def stream(seed: int, *keys: int | str) -> Generator:
    """A CPU generator whose numbers depend on the seed and the keys only.

    Different keys give independent streams; the same keys always give the same stream.
    """
    digest = hashlib.blake2b(repr((seed, *keys)).encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def randn(shape: Sequence[int], source: Source, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers, `shape` = (B, ...), float32; row i from generator i if there are B.

    Raises:
        ValueError: if there are several generators, but not one per row.
    """
    return _draw(torch.randn, shape, source, device, torch.float32)


def rand(shape: Sequence[int], source: Source, device: torch.device | str = "cpu") -> Tensor:
    """Uniform numbers in [0, 1), `shape` = (B, ...), float64 so that logarithms keep the tails."""
    return _draw(torch.rand, shape, source, device, torch.float64)


def _draw(
    make: Callable[..., Tensor],
    shape: Sequence[int],
    source: Source,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Tensor:
    if source is None or isinstance(source, Generator):
        # A generator draws on its own device; the numbers then move to the states'.
        origin = source.device if source is not None else device
        return make(tuple(shape), generator=source, device=origin, dtype=dtype).to(device)
    if len(source) != shape[0]:
        raise ValueError(f"got {len(source)} generators for {shape[0]} rows; give one per row")
    if not source:
        return torch.empty(tuple(shape), device=device, dtype=dtype)
    rows = [_draw(make, shape[1:], g, device, dtype) for g in source]
    return torch.stack(rows)
