"""What an update costs: the two-pass gradient against one graph and against the published loops.

python benchmarks/cost.py [--size tiny digits sd15-16] > benchmarks/cost.md

An update is all between recorded paths and their gradient: evaluations of policy and reference, and
backpropagation. Every model is measured in a process of its own, where the implementations take
turns on the same paths and their gradients are compared. The last table is that of
`cost_drakes.py`, whatever the arguments. For a GPU: --size sd15 sdxl sd3
--device cuda --dtype bfloat16 --steps 10.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from statistics import median

import torch
from cost_drakes import report as report_drakes
from cost_measures import Row, evaluations, graph_memory, peak_memory
from cost_models import MODELS, Case, Load, draw_case
from cost_updates import METHODS, Update
from torch import Tensor

NAMES = {
    "two-pass": "this package at the first inner step, whose log-probabilities are known",
    "two-pass-later": "at later inner steps, where the first pass costs something",
    "two-pass-two-calls": "with an evaluation for the prompt and one without, not in one batch",
    "two-pass-at-once": "with micro-batches of all samples instead of two",
    "one-graph": "the loss as one would write it, all samples at once and all steps in a graph",
    "published-loop": "ddpo-pytorch's (a call per step); D3PO's (four calls per pair and step, a "
    "copied network as the reference); for PRDP the same calls, a pair's steps in one graph",
}
HEADER = (
    "| method | implementation | calls | evaluations | weights, MB | graph, MB | peak, MB "
    "| seconds | ratio | gradient |"
)


def gradient(case: Case, update: Update) -> Tensor:
    """Of the trained parameters, flat."""
    parameters = case.policy.parameters().values()
    for parameter in parameters:
        parameter.grad = None
    update(case)
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def watched(case: Case, update: Update, row: Row, device: str) -> Tensor:
    """The gradient; what it took is written down."""
    networks = [case.policy.diffusion.network, case.frozen]
    with peak_memory(device, row), graph_memory(networks, row), evaluations(networks, row):
        return gradient(case, update)


def measure(
    size: str, load: Load, rounds: int, methods: Sequence[str], names: Sequence[str]
) -> list[Row]:
    """One row for every method and implementation; gradients are compared with the first's."""
    case, rows = draw_case(MODELS[size][0], load), []
    # What libraries allocate once belongs to nobody's peak.
    case.log_prob(torch.arange(1), 0).sum().backward()
    for method in methods:
        expected = None
        for name in names:
            row, start = Row(method, name), time.perf_counter()
            rows.append(row)
            try:
                found = watched(case, METHODS[method][name], row, load.device)
            except torch.OutOfMemoryError:
                row.fits = False
                continue
            expected = found if expected is None else expected
            row.error = float((found - expected).norm() / expected.norm())
            row.seconds += [] if rounds else [time.perf_counter() - start]
    fitting = [row for row in rows if row.fits]
    for i in range(rounds):
        # Whatever comes second finds another cache and another clock: they take turns.
        for row in fitting[:: 1 if i % 2 else -1]:
            row.seconds.append(seconds(case, METHODS[row.method][row.name], load.device))
    return rows


def seconds(case: Case, update: Update, device: str) -> float:
    """Of wall time, with the device's work done."""
    start = time.perf_counter()
    gradient(case, update)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def line(row: Row, ours: Row) -> str:
    """A row of the table."""
    if not row.fits:
        return f"| {row.method} | {row.name} | does not fit |" + " |" * 7
    sizes = " | ".join(f"{b / 2**20:.1f}" for b in (row.weights, row.graph, row.peak))
    ratios = [a / b for a, b in zip(row.seconds, ours.seconds, strict=True)]
    spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    counts = f"{row.calls} | {row.evaluations} | {sizes} | {median(row.seconds):.3f}"
    return f"| {row.method} | {row.name} | {counts} | {spread} | {row.error:.0e} |"


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=MODELS, default=["tiny", "digits", "sd15-16"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--implementations", nargs="+", choices=NAMES, default=list(NAMES))
    for name in ("prompts", "samples", "steps", "rounds"):
        parser.add_argument(f"--{name}", type=int)
    for name, default in (("device", "cpu"), ("dtype", "float32")):
        parser.add_argument(f"--{name}", default=default)
    return parser.parse_args()


def main() -> None:
    """Print a table in Markdown for each size."""
    asked = arguments()
    chosen = asked.methods, asked.implementations
    given = {name: v for name, v in vars(asked).items() if v is not None}
    print(
        "# What an update costs\n\nMade by `python benchmarks/cost.py "
        f"{' '.join(sys.argv[1:])}`, {asked.device}, {asked.dtype}, "
        f"{torch.get_num_threads()} CPU threads. Gradient: relative distance from that of the "
        "first row of the method; ratio: of seconds to that row's, median (least to most).\n\n"
        + "\n".join(f"- {name}: {meaning}" for name, meaning in NAMES.items()),
        flush=True,
    )
    for size in asked.size:
        _, load, rounds = MODELS[size]
        own = {name: given[name] for name in vars(load) if name in given}
        load, rounds = replace(load, **own), given.get("rounds", rounds)
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            rows = process.submit(measure, size, load, rounds, *chosen).result()
        print(
            f"\n## {size}: {load.prompts} prompts x {load.samples} samples, {load.steps} steps\n\n"
            f"{HEADER}\n|{' --- |' * 10}"
        )
        first = {row.method: row for row in reversed(rows)}
        print("\n".join(line(row, first[row.method]) for row in rows), flush=True)
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        print(f"\n{process.submit(report_drakes).result()}")


if __name__ == "__main__":
    main()
