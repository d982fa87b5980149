"""The law of a step of masked diffusion and its relaxations, against sums over all outcomes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffreward.enumeration import number, sequences
from diffreward.random import randn, stream
from diffreward.transitions import Categorical
from diffreward.unmasking import Relaxation, Unmasking

V, L = 3, 3
STATES = torch.tensor([[3, 3, 3], [3, 1, 3], [0, 3, 2], [2, 1, 0]])
OUTCOMES = sequences(V + 1, L)
RELAXATIONS: tuple[Relaxation, ...] = ("straight_through", "soft", "released")


def logits(seed: int = 0) -> Tensor:
    return randn((len(STATES), L, V + 1), stream(seed, "logits")).double()


def law(seed: int = 0, **settings: object) -> Unmasking:
    return Unmasking(STATES, logits(seed), **settings)


def masses(law: Unmasking) -> Tensor:
    """The probability of every outcome, (B, (V + 1)^L)."""
    n = len(OUTCOMES)
    rows = torch.arange(len(law.state)).repeat_interleave(n)
    return law[rows].log_prob(OUTCOMES.repeat(len(law.state), 1)).exp().reshape(-1, n)


def weights(ids: Tensor) -> Tensor:
    return F.one_hot(ids, V + 1).double()


def test_probabilities_are_products_over_the_masked_positions() -> None:
    p, found = logits().softmax(-1), masses(law())
    torch.testing.assert_close(found.sum(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(
        found[1, number(torch.tensor([0, 1, 3]), 4)], p[1, 0, 0] * p[1, 2, 3]
    )
    assert found[1, number(torch.tensor([0, 2, 3]), 4)] == 0
    assert found[3, number(STATES[3], 4)] == 1


def test_draws_have_the_probabilities_of_their_outcomes() -> None:
    n, expected = 20_000, masses(law())
    drawn = law()[torch.arange(4).repeat_interleave(n)].sample(stream(0))
    assert drawn.dtype == torch.int64
    for b, cells in enumerate(number(drawn, V + 1).reshape(4, n)):
        counts, mass = cells.bincount(minlength=(V + 1) ** L), expected[b]
        assert bool((counts[mass == 0] == 0).all())
        inside = mass > 0
        chi = ((counts - n * mass).square() / (n * mass))[inside].sum()
        # Pearson's chi-square: mean d, variance 2 d.
        d = int(inside.sum()) - 1
        assert abs(chi - d) <= 4 * math.sqrt(2 * d)


def test_the_divergence_is_that_of_the_enumerated_outcomes() -> None:
    p, q = masses(law(0)), masses(law(1))
    expected = torch.xlogy(p, p / q.where(p > 0, 1)).sum(1)
    torch.testing.assert_close(law(0).kl(law(1)), expected)
    assert law(0).kl(law(0)).abs().max() < 1e-12


def test_steps_that_agree_on_what_stays_masked_differ_by_their_symbols_alone() -> None:
    stays, symbols = torch.tensor([0.25, 0.75]).log(), [logits(s)[..., :-1] for s in (0, 1)]
    laws = [
        Unmasking(STATES, F.pad(s.log_softmax(-1) + stays[0], (0, 1), value=stays[1].item()))
        for s in symbols
    ]
    per_position = Categorical(symbols[0]).divergence(Categorical(symbols[1]))
    expected = 0.25 * (per_position * (STATES == V)).sum(1)
    torch.testing.assert_close(laws[0].kl(laws[1]), expected)


def test_the_divergence_of_relaxed_states_is_linear_in_the_weight_of_the_mask() -> None:
    hard = law().kl(law(1))
    relaxed = [Unmasking(weights(STATES), logits(s)) for s in (0, 1)]
    torch.testing.assert_close(relaxed[0].kl(relaxed[1]), hard)
    half = weights(STATES) / 2
    half[..., 0] += 0.5
    thinner = [Unmasking(half, logits(s)) for s in (0, 1)]
    torch.testing.assert_close(thinner[0].kl(thinner[1]), hard / 2)


def test_a_divergence_to_another_kind_of_law_is_refused() -> None:
    with pytest.raises(TypeError, match="Categorical"):
        law().kl(Categorical(logits()))


def test_rows_and_tilts_keep_the_settings() -> None:
    whole = law(temperature=0.3, relaxation="soft")
    direction = randn((4, L, V + 1), stream(2)).double()
    for other in (whole[torch.tensor([2, 0])], whole.tilted(direction), whole.detach()):
        assert (other.temperature, other.relaxation) == (0.3, "soft")
    torch.testing.assert_close(
        whole[torch.tensor([2, 0])].log_prob(STATES[[2, 0]]), whole.log_prob(STATES)[[2, 0]]
    )
    x = OUTCOMES[None].expand(4, -1, -1)
    pull = (weights(x) * direction[:, None]).sum((2, 3))
    expected = (masses(whole).log() + pull).softmax(1)
    torch.testing.assert_close(masses(whole.tilted(direction)), expected)


def test_a_straight_through_draw_has_the_value_of_the_draw() -> None:
    for state in (STATES, weights(STATES)):
        relaxed = Unmasking(state, logits(), 0.7).rsample(stream(3))
        hard = Unmasking(state, logits()).sample(stream(3))
        torch.testing.assert_close(relaxed, weights(hard))


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_a_relaxed_draw_is_a_law_of_each_position(relaxation: Relaxation) -> None:
    state = randn((4, L, V + 1), stream(4)).double().softmax(-1)
    drawn = Unmasking(state, logits(), 1.0, relaxation).rsample(stream(5))
    torch.testing.assert_close(drawn.sum(-1), torch.ones(4, L, dtype=torch.float64))
    assert float(drawn.min()) > -1e-12


def test_what_is_shown_stays_in_every_relaxation() -> None:
    for relaxation in RELAXATIONS:
        drawn = law(relaxation=relaxation).rsample(stream(6))
        assert torch.equal(drawn[STATES < V], weights(STATES)[STATES < V])


def test_soft_masks_give_away_what_they_lose_and_released_ones_do_not_vanish() -> None:
    """With a draw y of which the mask has g: m -> m g, against m -> (1 - m) m + m g."""
    state, after = weights(STATES[:1]), {}
    for relaxation in ("soft", "released"):
        x = state
        for _ in range(6):
            # So hot that every draw is the same: 1 / 4 for each symbol and the mask.
            x = Unmasking(x, logits()[:1], 1e9, relaxation).rsample(stream(7))
        after[relaxation] = x
    torch.testing.assert_close(after["soft"][..., -1], torch.full((1, L), 0.25**6).double())
    torch.testing.assert_close(after["soft"][..., :-1].sum(-1), 1 - after["soft"][..., -1])
    torch.testing.assert_close(after["released"], torch.full((1, L, V + 1), 0.25).double())


def test_the_mean_of_a_soft_draw_moves_mass_in_the_limit_of_low_temperature() -> None:
    state = weights(STATES[1:2]).expand(50_000, -1, -1)
    wide = Unmasking(state, logits()[1:2].expand(50_000, -1, -1), 0.02, "soft")
    p = logits()[1].softmax(-1)
    expected = torch.where((STATES[1] == V)[:, None], p, weights(STATES[1]))
    # Of 50,000 numbers in [0, 1]: the standard error is below 0.5 / 224.
    torch.testing.assert_close(
        wide.rsample(stream(8)).mean(0), expected, rtol=0, atol=4 * 0.5 / 224 + 1e-3
    )


def gradient(temperature: float, relaxation: Relaxation, n: int = 400_000) -> tuple[Tensor, Tensor]:
    """Of the mean worth of a draw of one position: estimated, and exact. Its logits are given."""
    worth = torch.tensor([1.0, -0.5, 0.3, 0.0]).double()
    leaf = torch.tensor([0.5, 0.0, -0.5, 0.2]).double().requires_grad_()
    state = torch.full((n, 1), V)
    drawn = Unmasking(state, leaf.expand(n, 1, 4), temperature, relaxation).rsample(stream(9))
    (found,) = torch.autograd.grad((drawn @ worth).mean(), leaf)
    p = leaf.detach().softmax(0)
    return found, p * (worth - p @ worth)


@pytest.mark.parametrize("relaxation", ["straight_through", "soft"])
def test_the_gradient_of_a_draw_is_exact_in_the_limit_of_low_temperature(
    relaxation: Relaxation,
) -> None:
    """Of a linear function; that of a draw has terms up to 1 / temperature, mostly near 0."""
    found, exact = gradient(0.1, relaxation)
    hot, _ = gradient(1.0, relaxation)
    assert float((found - exact).abs().max()) < 0.015
    assert float((hot - exact).abs().max()) > 0.05
