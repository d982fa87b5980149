"""The second table of `exact_sequences.py`: fine-tuning, judged by the exact law of the samples."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from exact_sequences_world import ALPHA, LENGTH, chain
from torch import Tensor, nn

from diffreward.algorithm import Algorithm, Batch
from diffreward.algorithms.ddpo import DDPO
from diffreward.algorithms.dpok import DPOK
from diffreward.algorithms.drakes import DRAKES
from diffreward.algorithms.prdp import PRDP
from diffreward.algorithms.rwr import RWR
from diffreward.algorithms.spo import SPO
from diffreward.alphabets import DNA
from diffreward.enumeration import number, sequences
from diffreward.learner import Learner
from diffreward.penalty import Penalty
from diffreward.pipelines.enumerable import TableReward
from diffreward.policy import Full
from diffreward.preferences import Encoded
from diffreward.processes import Processes
from diffreward.random import stream
from diffreward.samples import tokens
from diffreward.sequences.denoisers import DenoiserOutput, weights_of
from diffreward.sequences.exact_laws import (
    any_order_law,
    any_order_masses,
    conditionals,
    exact_denoiser,
)
from diffreward.sequences.tilted_law import TiltedLaw, kl
from diffreward.settings import Training
from diffreward.steering import SVDD, steer_diffusion
from runs import learn

STEPS, RATE = 16, 2e-3
KL = Penalty("kl", ALPHA, "sum")
HEAD = f"""
## Fine-tuning

An MLP 30-128-128-24, {STEPS} steps, AdamW at {RATE} that falls to 0, one seed, lightly tuned. E r,
KL from the model and J = E r - alpha KL are those of the law of its samples (with infinitely many
steps), summed exactly; gap is its KL from p*, so that J = J* - alpha gap. Seconds are of one core.

| method | E r | KL | J | gap | updates x samples | seconds |
| --- | --- | --- | --- | --- | --- | --- |"""


class SmallDenoiser(ModelMixin, ConfigMixin):
    """The network."""

    @register_to_config
    def __init__(self, vocab_size: int = 4, hidden: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(LENGTH * (vocab_size + 1), hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, LENGTH * vocab_size),
        )

    def forward(self, sample: Tensor, timestep: Tensor | None = None) -> DenoiserOutput:
        """Logits, (B, L, V)."""
        size = self.config.vocab_size
        flat = weights_of(sample, size, torch.float32).flatten(1)
        return DenoiserOutput(self.layers(flat).unflatten(1, (LENGTH, size)))


def fitted(world: TiltedLaw, updates: int = 4000) -> SmallDenoiser:
    """The network before fine-tuning: fitted to the exact conditionals, of states as they come."""
    generator, states = stream(0, "fit"), sequences(len(DNA) + 1, LENGTH)
    target = conditionals(world.law, len(DNA))
    masses = any_order_masses(target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallDenoiser()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        rows = torch.multinomial(masses, 512, True, generator=generator)
        hidden = states[rows] == len(DNA)
        log_p = network(states[rows]).logits.log_softmax(-1)
        gap = (target[rows] * (target[rows].log() - log_p)).sum(-1)
        optimizer.zero_grad()
        gap[hidden].mean().backward()
        optimizer.step()
        schedule.step()
    return network


@dataclass(frozen=True)
class Run:
    """A method and how long it trains.

    Args:
        algorithm: the method.
        updates: rounds.
        samples: of each round.
        settings: of the chain.
        data: what it learns from in place of its own samples, ids (n, L).
    """

    algorithm: Algorithm[Any]
    updates: int
    samples: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Callable[[TiltedLaw], Tensor] | None = None

    def trained(self, world: TiltedLaw, start: Mapping[str, Tensor]) -> SmallDenoiser:
        """The network at the end."""
        network = SmallDenoiser()
        network.load_state_dict(start)
        settings = Training(
            updates=self.updates, learning_rate=RATE, schedule="linear", weight_decay=0.0
        )
        policy = Full().attach(chain(network, STEPS, **self.settings), rows=1024)
        learner = Learner(policy, settings, Processes(settings).accelerator)
        reward, clean = TableReward(world.rewards), self.data and self.data(world)
        for update in range(1, self.updates + 1):
            data = None if clean is None else some(world, clean, self.samples, update)
            batch = Batch([""], self.samples, 0, update, data=data)
            learn(self.algorithm, policy, learner, reward, batch, settings.rate(update))
        return network


def some(world: TiltedLaw, clean: Tensor, n: int, update: int) -> Encoded:
    """So many of the given sequences, with their rewards."""
    rows = torch.randint(len(clean), (n,), generator=stream(update, "data"))
    scores = world.rewards[number(clean[rows], len(DNA))].float()
    return Encoded(("",), clean[rows], scores, torch.zeros(n, dtype=torch.int64))


def steered(world: TiltedLaw) -> Tensor:
    """What SVDD-PM returns, ids (n, L)."""
    reward = TableReward(world.rewards)
    method = SVDD(8, 1 / ALPHA)
    model = chain(exact_denoiser(world.law, len(DNA)), 2 * STEPS)
    return tokens(steer_diffusion(model, reward, [""] * 2000, method, rows=1 << 16).samples)


def runs() -> Iterator[tuple[str, Run]]:
    """The rows."""
    dpok = DPOK(KL, "path", clip=0.2, reduction="sum", inner_steps=2)
    ddpo = DDPO(0.2, scale="none", reduction="sum", inner_steps=2, penalty=KL)
    prdp = PRDP(ALPHA, None, "sum", "sum", inner_steps=4)
    rwr = RWR(ALPHA, "softmax", "reference", draws=4, inner_steps=4)
    yield "DPOK, credit of paths (REINFORCE on J)", Run(dpok, 120, 512)
    yield "DDPO + KL of steps", Run(ddpo, 180, 512)
    yield "PRDP", Run(prdp, 60, 256)
    yield "RWR on the model's samples", Run(rwr, 160, 1024)
    yield "RWR, equal weights, on SVDD-PM's", Run(RWR(1e6, draws=4), 200, 512, data=steered)
    yield "SPO", Run(SPO(untrained=0, reduction="sum"), 60, 128)
    for name, relaxation in (("straight-through", "straight_through"), ("soft", "soft")):
        for steps, last in (("all steps", None), ("last half", STEPS // 2)):
            settings = {"relaxation": relaxation}
            yield f"DRAKES, {name}, {steps}", Run(DRAKES(last, KL), 100, 128, settings)
    settings = {"gumbel_temperature": 0.5}
    yield "DRAKES, temperature 0.5, last half", Run(DRAKES(STEPS // 2, KL), 400, 128, settings)
    released = DRAKES(STEPS // 2, KL, as_released=True)
    settings = {"relaxation": "released", "final_time": 1e-5}
    yield "DRAKES as released, last half", Run(released, 100, 128, settings)


def table(world: TiltedLaw) -> Iterator[str]:
    """The table in Markdown."""
    begin = time.process_time()
    network = fitted(world)
    yield HEAD
    yield row("before", "", world, network, begin)
    for name, run in runs():
        begin = time.process_time()
        trained = run.trained(world, network.state_dict())
        yield row(name, f"{run.updates} x {run.samples}", world, trained, begin)


def row(name: str, spent: str, world: TiltedLaw, network: SmallDenoiser, begin: float) -> str:
    """What became of a network."""
    seconds = time.process_time() - begin
    with torch.no_grad():
        law = any_order_law(network, LENGTH)
    found = [world.mean(law), world.divergence(law), world.objective(law), kl(law, world.optimum)]
    numbers = [f"{float(value):.4f}" for value in found]
    return f"| {' | '.join([name, *numbers, spent, f'{seconds:.0f}'])} |"
