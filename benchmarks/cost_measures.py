"""What `cost.py` and `cost_drakes.py` count of an update: evaluations, weights and memory."""

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Row:
    """What one implementation of one method needs.

    Args:
        method: what is computed.
        name: how.
        calls: of the network, the reference's among them.
        evaluations: samples that went through it; guidance makes two of one.
        weights: bytes of the networks in memory.
        graph: the most bytes that autograd holds at a time, weights not counted.
        peak: the most bytes of memory above what was in use before.
        error: relative distance of its gradient from that of the method's first implementation.
        seconds: of each round of timing, or of the only run, which also counts bytes.
        fits: whether the device had enough memory.
    """

    method: str
    name: str
    calls: int = 0
    evaluations: int = 0
    weights: int = 0
    graph: int = 0
    peak: int = 0
    error: float = 0.0
    seconds: list[float] = field(default_factory=list)
    fits: bool = True


@contextmanager
def evaluations(networks: Sequence[nn.Module], row: Row) -> Iterator[None]:
    """Count what the networks do, and add their weights up."""

    def count(network: nn.Module, args: Any, output: Any) -> None:
        used.add(network)
        row.calls += 1
        row.evaluations += len(output[0])

    used: set[nn.Module] = set()
    hooks = [network.register_forward_hook(count) for network in networks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    row.weights = sum(p.numel() * p.element_size() for n in used for p in n.parameters())


@contextmanager
def graph_memory(networks: Sequence[nn.Module], row: Row) -> Iterator[None]:
    """Count the bytes that autograd holds: each memory block once, weights not at all."""
    weights = {_block(p) for network in networks for p in network.parameters()}
    holders: dict[int, int] = {}
    held = 0

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal held
            self.tensor, self.block = tensor, _block(tensor)
            self.size = 0 if self.block in weights else tensor.untyped_storage().nbytes()
            held += 0 if holders.get(self.block) else self.size
            holders[self.block] = holders.get(self.block, 0) + 1
            row.graph = max(row.graph, held)

        def __del__(self) -> None:
            nonlocal held
            holders[self.block] -= 1
            held -= 0 if holders[self.block] else self.size

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda saved: saved.tensor):
        yield


def _block(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def peak_memory(device: str, row: Row) -> Iterator[None]:
    """The device's peak above what was in use; on a CPU that of resident memory, on Linux only."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield
        row.peak = torch.cuda.max_memory_allocated() - before
    elif sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        yield
        row.peak = _resident("VmHWM") - before
    else:
        yield


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))
