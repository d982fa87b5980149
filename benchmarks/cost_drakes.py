"""What an update of DRAKES costs beside the structure of the authors' code, at equal gradients.

python benchmarks/cost_drakes.py, or as the end of cost.py. Both get the same states from the same
random numbers, and the same network and kernels: what differs is what is evaluated, and what of it
waits for the backward pass. Seconds are those of the processor, of one thread.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from cost_measures import Row, evaluations, graph_memory
from released_drakes import EPSILON, FINAL_TIME, Released
from torch import Generator, Tensor, nn

from diffreward.algorithm import Batch
from diffreward.algorithms.drakes import DRAKES
from diffreward.alphabets import DNA
from diffreward.penalty import Penalty
from diffreward.pipelines.masked_diffusion import MaskedDiffusion
from diffreward.policy import Full, Policy
from diffreward.random import rand, stream
from diffreward.samples import Samples, tokens
from diffreward.sequences.denoisers import ConvDenoiser
from diffreward.sequences.pipeline import MaskedDiffusionPipeline
from diffreward.sequences.scheduler import MaskedDiffusionScheduler

ALPHA = 0.128
HEADER = "| implementation | calls | graph, MB | of it | seconds | times as fast | gradient |"


@dataclass(frozen=True)
class Load:
    """How much there is to do: the paper's steps, half of its length, width and depth.

    Args:
        samples: B.
        length: L.
        hidden: channels of the network.
        stacks: of its five kinds of blocks.
        steps: T.
        soft: the last ones, with gradient.
    """

    samples: int = 2
    length: int = 100
    hidden: int = 64
    stacks: int = 2
    steps: int = 128
    soft: int = 50


def policy_of(load: Load) -> Policy:
    """A network with random weights, away from its reference."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = ConvDenoiser(hidden=load.hidden, stacks=load.stacks)
    scheduler = MaskedDiffusionScheduler(epsilon=EPSILON)
    pipe = MaskedDiffusionPipeline(denoiser, scheduler, DNA, load.length)
    diffusion = MaskedDiffusion(pipe, load.steps, relaxation="released", final_time=FINAL_TIME)
    policy = Full().attach(diffusion, load.samples)
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters().values()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=stream(i))
    return policy


def score(weights: Tensor) -> Tensor:
    """Of symbols and those beside them, differentiable: (B, L, V) -> (B,)."""
    table = torch.randn(4, 4, generator=stream(7)).to(weights)
    return torch.einsum("blv,vw,blw->b", weights[:, 1:], table, weights[:, :-1]).tanh()


def reward(samples: Samples, prompts: object) -> Tensor:
    """The same of samples."""
    return score(tokens(samples))


def ours(policy: Policy, load: Load, batch: Batch, checkpointing: bool) -> None:
    """This package's update."""
    kl = Penalty("kl", ALPHA, "sum")
    algorithm = DRAKES(load.soft, kl, as_released=True, checkpointing=checkpointing)
    for term in algorithm.losses(policy, algorithm.collect(policy, reward, batch), 0):
        term.backward()


def theirs(policy: Policy, reference: nn.Module, load: Load, batch: Batch) -> None:
    """The update of the released structure, whose reference is not frozen."""
    masked = policy.diffusion.masked
    alpha = ALPHA * float(masked[0] - masked[1])
    released = Released(policy.diffusion.network, reference, score, load.steps, load.soft, alpha)
    masks = torch.full((load.samples, load.length), len(DNA))
    start = F.one_hot(masks, len(DNA) + 1).float()
    released.loss(start, _gumbels(start.shape, batch.streams("steps"))).backward()


def _gumbels(shape: torch.Size, noise: list[Generator]) -> Iterator[Tensor]:
    while True:
        yield -(-(1 - rand(shape, noise)).log()).log().float()


def gradient(policy: Policy, update: Callable[[], None]) -> Tensor:
    """Of the trained parameters, flat."""
    parameters = policy.parameters().values()
    for parameter in parameters:
        parameter.grad = None
    update()
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def measure(load: Load, rounds: int) -> list[Row]:
    """One row for each implementation, the released structure first."""
    policy, batch = policy_of(load), Batch([""], load.samples, seed=0, update=1)
    with policy.reference():
        reference = policy.diffusion.network
    unfrozen = ConvDenoiser.from_config(reference.config)
    unfrozen.load_state_dict(reference.state_dict())
    updates: Mapping[str, Callable[[], None]] = {
        "released structure": partial(theirs, policy, unfrozen, load, batch),
        "this package": partial(ours, policy, load, batch, False),
        "this package, checkpointed": partial(ours, policy, load, batch, True),
    }
    networks, rows, expected = [policy.diffusion.network, reference, unfrozen], [], None
    for name, update in updates.items():
        row = Row("DRAKES", name)
        with graph_memory(networks, row), evaluations(networks, row):
            found = gradient(policy, update)
        expected = found if expected is None else expected
        row.error = float((found - expected).norm() / expected.norm())
        rows.append(row)
    for i in range(rounds):
        # Whatever comes second finds another cache: they take turns.
        for row in rows[:: 1 if i % 2 else -1]:
            start = time.process_time()
            gradient(policy, updates[row.name])
            row.seconds.append(time.process_time() - start)
    return rows


def line(row: Row, first: Row) -> str:
    """A row of the table."""
    ratios = [a / b for a, b in zip(first.seconds, row.seconds, strict=True)]
    # What others do on the machine makes rounds longer, never shorter.
    least = min(row.seconds)
    spread = f"{min(first.seconds) / least:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    graph = f"{row.graph / 2**20:.1f} | {row.graph / first.graph:.3f}"
    return f"| {row.name} | {row.calls} | {graph} | {least:.2f} | {spread} | {row.error:.0e} |"


def report(rounds: int = 7) -> str:
    """The table in Markdown. For a process of its own, whose number of threads it sets."""
    torch.set_num_threads(1)
    load = Load()
    rows = measure(load, rounds)
    return "\n".join(
        [
            f"## DRAKES: {load.samples} sequences of {load.length}, {load.hidden} channels, "
            f"{5 * load.stacks} blocks, {load.soft} of {load.steps} steps with gradient",
            "",
            HEADER,
            f"|{' --- |' * 7}",
            *(line(row, rows[0]) for row in rows),
        ]
    )


if __name__ == "__main__":
    print(report())
