"""What the value of a set, its gradient and its credits cost, beside the square root of a matrix.

python benchmarks/cost_sets.py > benchmarks/cost_sets.md, or with other --rows and --features. The
square root is how pytorch-fid, clean-fid and fadtk take the distance; it has no gradient. Seconds
are those of the processor, of one thread, the least of some rounds: in float64 but where it says
otherwise, with the root of the reference at hand, as it is after the first call.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from diffreward.frechet import Gaussian
from diffreward.moments import Moments
from diffreward.random import stream
from diffreward.rewards.frechet import FrechetDistance
from diffreward.rewards.mmd import MMD
from diffreward.rewards.vendi import Vendi
from diffreward.samples import Samples
from diffreward.set_reward import SetReward


def itself(samples: Samples, prompts: object) -> Tensor:
    """A row per sample."""
    return next(iter(vars(samples).values()))[:, None]


def draw(n: int, d: int, seed: int) -> Tensor:
    """Rows whose features are mixed, (n, d) float64."""
    mixing = torch.randn(d, d, generator=stream(0), dtype=torch.float64) / math.sqrt(d)
    return torch.randn(n, d, generator=stream(seed), dtype=torch.float64) @ mixing


def published(rows: Tensor, target: Gaussian) -> float:
    """The distance through the square root of the product of the covariances."""
    from scipy.linalg import sqrtm

    covariance, other = np.cov(rows.numpy(), rowvar=False), target.covariance.numpy()
    apart = rows.numpy().mean(0) - target.mean.numpy()
    return float(apart @ apart + np.trace(covariance + other - 2 * sqrtm(covariance @ other).real))


def gradient(reward: SetReward, rows: Tensor) -> Tensor:
    """Of the value, to the rows."""
    rows = rows.detach().requires_grad_()
    (slope,) = torch.autograd.grad(reward.value(rows), rows)
    return slope


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The least time of the processor."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def tasks(n: int, d: int) -> Iterator[tuple[str, Callable[[], object], int]]:
    """Name, work and rounds: first the square root."""
    rows, other = draw(n, d, 1), draw(10 * d, d, 2)
    blocks, past = rows[:, None], rows[:0]
    frechet = FrechetDistance(itself, Moments.of(other))
    mmd, gaussian = MMD(itself, other), MMD(itself, other, "gaussian")
    yield "Frechet: square root of a matrix (scipy)", lambda: published(rows, frechet.reference), 2
    yield "Frechet: value", lambda: frechet.value(rows), 5
    yield "Frechet: value, float32", lambda: frechet.value(rows.float()), 5
    yield "Frechet: value and gradient", lambda: gradient(frechet, rows), 5
    yield "Frechet: value and gradient, float32", lambda: gradient(frechet, rows.float()), 5
    yield "Frechet: influences", lambda: frechet.credits(blocks), 5
    yield "Frechet: leaving out each", lambda: frechet.values_without_each(blocks, past), 1
    for name, reward in (("polynomial", mmd), ("gaussian", gaussian)):
        yield f"MMD, {name}: value", lambda reward=reward: reward.value(rows), 5
        yield f"MMD, {name}: influences", lambda reward=reward: reward.credits(blocks), 5
    for order in (1.0, 2.0):
        vendi = Vendi(itself, order)
        yield f"Vendi, order {order:g}: influences", lambda v=vendi: v.credits(blocks), 5


def report(n: int, d: int) -> str:
    """A table in Markdown."""
    lines, first = [], 0.0
    for name, work, rounds in tasks(n, d):
        work()
        found = seconds(work, rounds)
        first = first or found
        lines.append(f"| {name} | {found:.4f} | {first / found:.1f} |")
    header = f"## {n} rows of {d} features\n\n| what | seconds | times as fast as scipy |"
    return "\n".join([header, "| --- | --- | --- |", *lines])


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 300, 1024])
    parser.add_argument("--features", type=int, nargs="+", default=[512])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("# What rewards of sets cost\n\nMade by `python benchmarks/cost_sets.py`.", flush=True)
    for d in asked.features:
        for n in asked.rows:
            print(f"\n{report(n, d)}", flush=True)


if __name__ == "__main__":
    main()
