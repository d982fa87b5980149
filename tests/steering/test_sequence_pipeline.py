"""Masked diffusion of sequences under the hook: exact tilted laws, and particles of their own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from sequences.exact_world import clean_law, exact_pipeline
from steering.drop_in_cases import looking
from torch import Tensor

from diffreward.enumeration import number, sequences
from diffreward.pipelines.enumerable import total_variation
from diffreward.random import randn, stream
from diffreward.samples import Samples, Tokens, tokens
from diffreward.steering import FKSteering, steer
from diffreward.steering.drop_in.media import read_media
from diffreward.steering.methods import ONCE
from diffreward.steering.resampling import Resampling

V, LENGTH, STEPS = 3, 3, 4


@dataclass(frozen=True)
class TableReward:
    """The reward of each sequence, by its number."""

    rewards: Tensor

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return self.rewards[number(tokens(samples), V)]


REWARD = TableReward(0.7 * randn((V**LENGTH,), stream(0, "sequence rewards")).double())


def every_state(particles: int, scale: float = 1.0, **settings: object) -> FKSteering:
    return FKSteering(particles, scale, interval=1, start=0.0, stop=1.0, **settings)


@pytest.mark.parametrize(
    "settings", [{"sampler": "ancestral"}, {"sampler": "remdm_cap", "eta": 0.3}]
)
@pytest.mark.parametrize("draws", [1, 4])
def test_the_evidence_is_unbiased_and_weights_tilt_the_law(settings, draws) -> None:
    pipe = exact_pipeline(V, LENGTH, **settings)
    method = every_state(4, ess_threshold=0.8, draws=draws)
    steered = steer(pipe, REWARD, method, rows=1 << 20, seed=0)
    steered([""] * 1024, STEPS, generator=stream(0, "tilt"))
    law, last = clean_law(pipe, STEPS), steered.last
    tilted = law * REWARD.rewards.exp()
    z = (last.log_evidence - tilted.sum().log()).exp()
    root = math.sqrt(len(z))
    assert abs(z.mean() - 1) < 4 * z.std() / root < 0.3
    seen = torch.nn.functional.one_hot(tokens(last.particles), V).double()
    seen = seen.reshape(*last.weights.shape, LENGTH, V)
    estimates = z[:, None, None] * (last.weights[..., None, None] * seen).sum(1)
    every = torch.nn.functional.one_hot(sequences(V, LENGTH), V).double()
    exact = torch.einsum("n,nlv->lv", tilted / tilted.sum(), every)
    errors = estimates.std(0) / root
    assert ((estimates.mean(0) - exact).abs() < 4 * errors + 1e-3).all()
    base = torch.einsum("n,nlv->lv", law, every)
    assert ((base - exact).abs() / (4 * errors + 1e-3)).max() > 2
    assert (last.lineage != torch.arange(4)).any()


def test_one_drawn_of_many_particles_follows_the_tilted_law() -> None:
    """1024 draws from the tilted law itself are 0.06 away from it."""
    pipe = exact_pipeline(V, LENGTH)
    steered = steer(pipe, REWARD, every_state(32, select="draw"), rows=1 << 20, seed=0)
    output = steered([""] * 1024, STEPS, generator=stream(0, "draw"), output_type="pt")
    law = clean_law(pipe, STEPS)
    tilted = law * REWARD.rewards.exp()
    found = torch.bincount(number(output.sequences, V), minlength=V**LENGTH).double() / 1024
    assert total_variation(found, tilted / tilted.sum()) < 0.085
    assert total_variation(law, tilted / tilted.sum()) > 0.3


def test_looking_changes_nothing() -> None:
    pipe = exact_pipeline(V, LENGTH)
    plain = pipe([""] * 8, STEPS, generator=stream(0, "look")).sequences
    steered = steer(pipe, REWARD, looking(4))
    steered([""] * 2, STEPS, generator=stream(0, "look"))
    assert steered.last.all_particles().sequences == plain
    assert isinstance(steered.last.samples, Tokens)


@pytest.mark.parametrize("name", ["ancestral", "first_hitting", "remdm_conf", "confidence"])
@pytest.mark.parametrize("state", [1, 2, 3])
def test_particles_turned_round_keep_what_is_theirs(name: str, state: int) -> None:
    """A generator for each: turned round, states, templates and memory go on in other rows.

    Evaluations that are kept must not be those of the row that a particle has left: after the turn
    row i of the whole is what the plain loop makes of particle 3 - i with the noise of row i.
    """
    pipe = exact_pipeline(V, LENGTH, sampler=name)
    turned = Resampling(lambda w, _: torch.arange(4).flip(0)[None], True)
    method = FKSteering(
        4,
        1.0,
        resampling=turned,
        ess_threshold=1.0,
        interval=ONCE,
        start=state / STEPS,
        stop=1.0,
    )
    steered = steer(pipe, REWARD, method, seed=0)
    steered(["_G_"], STEPS, generator=[stream(0, i) for i in range(4)], output_type="pt")
    turns = (steered.last.lineage[:, 0] != torch.arange(4)).any(1)
    assert turns.nonzero().tolist() == [[state]]
    # The same by hand, with every row evaluated at every step.
    scheduler, sources = pipe.scheduler, [stream(0, i) for i in range(4)]
    scheduler.set_timesteps(STEPS)
    x = torch.tensor([[V, 2, V]]).repeat(4, 1)
    with torch.no_grad():
        for k, t in enumerate(scheduler.timesteps):
            if k == state:
                x = x.flip(0)
                memory = scheduler._chance
                scheduler._chance = None if memory is None else memory.flip(0)
            x = scheduler.step(pipe.denoiser(x, t).logits, t, x, sources).prev_sample
            x[:, 1] = 2
    assert torch.equal(steered.last.all_particles().sequences, x)


def test_sequences_are_read_as_tokens_in_every_form() -> None:
    pipe = exact_pipeline(V, LENGTH)
    for how in ({}, {"output_type": "pt"}, {"return_dict": False}):
        found = read_media(pipe, pipe("AC_", STEPS, 2, stream(0, "read"), **how))
        assert isinstance(found, Tokens) and found.alphabet == "ACG"
        assert tokens(found)[:, :2].tolist() == [[0, 1], [0, 1]]
