"""Masked diffusion of a law that is known exactly: as a chain, as a loss, and under templates."""

import math

import numpy as np
import pytest
import torch
from sequence_world import table_world
from torch import Tensor

from diffreward.conformance import check_diffusion
from diffreward.diffusion import draw, rollout
from diffreward.enumeration import number, sequences
from diffreward.pipelines.enumerable import random_law
from diffreward.pipelines.masked_diffusion import MaskedDiffusion
from diffreward.random import stream
from diffreward.samples import Tokens
from diffreward.sequences.denoisers import ConvDenoiser
from diffreward.sequences.exact_laws import conditionals_of, law_of, step_masses
from diffreward.sequences.pipeline import MaskedDiffusionPipeline
from diffreward.sequences.scheduler import MaskedDiffusionScheduler
from diffreward.sequences.tilted_law import conditionals, kl

LAW = random_law(3, 3)
N = 20_000


def sample(world: MaskedDiffusion, prompt: str = "", n: int = N) -> Tensor:
    return draw(world, world.encode([prompt] * n), None, stream(1), rows=n)


def assert_follows(ids: Tensor, law: Tensor) -> None:
    """Pearson's chi-square over the cells that can be: mean d, variance 2 d for d = cells - 1."""
    n, possible = len(ids), law > 0
    counts = number(ids, 3).bincount(minlength=len(law))
    assert not bool(counts[~possible].any())
    chi = ((counts - n * law).square() / (n * law))[possible].sum()
    d = int(possible.sum()) - 1
    assert abs(chi - d) < 4 * math.sqrt(2 * d)


@pytest.mark.parametrize("relaxation", ["straight_through", "soft", "released"])
@pytest.mark.parametrize("noise", ["log_linear", "cosine"])
def test_it_keeps_the_contract(relaxation: str, noise: str) -> None:
    check_diffusion(table_world(relaxation=relaxation, noise=noise), ["", "A__", "_GC"][:2])


@pytest.mark.parametrize("noise", ["log_linear", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_draws_follow_the_exact_law_of_so_many_steps(num_steps: int, noise: str) -> None:
    world = table_world(LAW, num_steps=num_steps, noise=noise)
    law = law_of(step_masses(conditionals(LAW, 3), world.masked.tolist())[-1], 3)
    assert float(kl(law, LAW)) > 1e-3
    assert_follows(sample(world), law)


def test_probabilities_of_paths_and_their_divergence_are_those_of_the_sums() -> None:
    """E[log p / p_reference] of paths is their KL, step by step: by sampling and by enumeration."""
    ours, theirs = table_world(LAW), table_world(random_law(3, 3, seed=1))
    path = rollout(ours, ours.encode([""] * N), None, stream(1), rows=N)
    masked = (sequences(4, 3) == 3)[..., None]
    p, q = (conditionals_of(world.network, 3).detach() for world in (ours, theirs))
    per_state = (masked * p * (p / q).log()).sum((1, 2))
    masses = step_masses(p, ours.masked.tolist())
    ratios, divergences = [], []
    for k in range(4):
        with torch.no_grad():
            law, other = (
                world.step(path.states[:, k], k, path.condition).transition
                for world in (ours, theirs)
            )
            after = path.states[:, k + 1]
            ratios.append(law.log_prob(after) - other.log_prob(after))
        divergences.append(law.kl(other))
        revealed = 1 - float(ours.masked[k + 1] / ours.masked[k])
        exact = revealed * float(masses[k] @ per_state)
        for estimate in (ratios[-1], divergences[-1]):
            error = float(estimate.std()) / math.sqrt(N)
            # At the first step all states are alike, and what is left is rounding.
            assert abs(float(estimate.mean()) - exact) < 4 * error + 1e-5
    assert float(torch.stack(divergences).sum(0).mean()) > 0.3


@pytest.mark.parametrize("noise", ["log_linear", "cosine"])
def test_the_mean_error_of_the_exact_denoiser_is_the_entropy(noise: str) -> None:
    """Summed over sequences, masks and (by quadrature) times.

    In m the integrand is a polynomial, which 16 nodes integrate exactly.
    """
    world, clean = table_world(LAW, noise=noise), sequences(3, 3)
    masks = sequences(2, 3).bool()
    everyone = clean.repeat_interleave(8, 0)
    hidden = masks.repeat(27, 1)
    noisy = everyone.masked_fill(hidden, 3)
    target = torch.nn.functional.one_hot(everyone, 3) * hidden[..., None]
    condition = world.encode([""] * len(noisy))
    output = world.predict(noisy, torch.full((len(noisy),), 0.5), condition)
    errors = 3 * world.matching_error(output, target.float()).detach().double()
    total = 0.0
    for x, w in zip(*np.polynomial.legendre.leggauss(16), strict=True):
        m = (x + 1) / 2
        inside = m ** hidden.sum(1) * (1 - m) ** (~hidden).sum(1)
        # The weight m' / m times dt is dm / m, whatever the schedule.
        total += w / 2 / m * float((LAW.repeat_interleave(8) * inside) @ errors)
    entropy = -float(LAW @ LAW.log())
    assert total == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize("noise", ["log_linear", "cosine"])
def test_corruption_masks_the_share_of_its_time_and_weighs_what_it_hides(noise: str) -> None:
    world = table_world(LAW, noise=noise)
    clean = sequences(3, 3).repeat(400, 1)
    for time in (0.2, 0.7):
        t = torch.full((len(clean),), time)
        noisy, target = world.corrupt(clean, t, stream(2))
        hidden = noisy == 3
        assert torch.equal(noisy[~hidden], clean[~hidden])
        m = float(world.pipeline.scheduler.masked_share(torch.tensor(time)))
        n = hidden.numel()
        assert abs(float(hidden.double().mean()) - m) < 4 * math.sqrt(m * (1 - m) / n)
        weight = float(world.pipeline.scheduler.loss_weight(torch.tensor(time)))
        expected = weight * torch.nn.functional.one_hot(clean, 3) * hidden[..., None]
        torch.testing.assert_close(target, expected.float())


def test_predictions_are_certain_of_what_is_there() -> None:
    world, noisy = table_world(LAW), torch.tensor([[2, 3, 0]])
    output = world.predict(noisy, torch.tensor([0.5]), world.encode([""]))
    assert output[0, 0].tolist() == [-math.inf, -math.inf, 0]
    assert output[0, 2].tolist() == [0, -math.inf, -math.inf]
    expected = conditionals(LAW, 3)[number(noisy[0], 4), 1].log().float()
    torch.testing.assert_close(output[0, 1], expected)
    other = world.predict(noisy, torch.tensor([0.1]), world.encode(["GCA"]))
    assert bool((other.exp().amax(-1) == 1).all())


def test_the_divergence_of_predictions_counts_masked_positions_only() -> None:
    world, other = table_world(LAW), table_world(random_law(3, 3, seed=1))
    noisy, t = torch.tensor([[2, 3, 0], [2, 1, 0], [3, 3, 3]]), torch.full((3,), 0.5)
    condition = world.encode([""] * 3)
    found = world.output_kl(*(w.predict(noisy, t, condition) for w in (world, other)))
    p, q = (conditionals_of(w.network, 3)[number(noisy, 4)] for w in (world, other))
    per_position = (p * (p / q).log()).sum(-1)
    expected = (per_position * (noisy == 3)).sum(1)
    torch.testing.assert_close(found, expected.float())


@pytest.mark.parametrize("template", ["A_C", "_GC", "CA_"])
def test_a_template_with_one_free_position_is_filled_in_by_its_conditional(template: str) -> None:
    shown = [(i, "ACG".index(s)) for i, s in enumerate(template) if s != "_"]
    inside = torch.stack([sequences(3, 3)[:, i] == s for i, s in shown]).all(0)
    law = (LAW * inside) / LAW[inside].sum()
    assert_follows(sample(table_world(LAW), template, 5000), law)


def test_templates_of_more_free_positions_become_conditionals_as_steps_grow() -> None:
    inside = sequences(3, 3)[:, 1] == 2
    law = (LAW * inside) / LAW[inside].sum()
    assert_follows(sample(table_world(LAW, num_steps=60), "_G_", 5000), law)


def test_what_a_template_fixes_is_never_moved_by_a_gradient_either() -> None:
    world = table_world(LAW, relaxation="soft")
    x, condition = world.relaxed(world.prior(20)), world.encode(["_G_"] * 20)
    for k in range(world.num_steps):
        x = world.step(x, k, condition).transition.rsample(stream(k))
    assert torch.equal(x[:, 1], torch.tensor([0.0, 0, 1, 0]).expand(20, 4))


def test_relaxed_states_that_are_certain_have_the_law_of_their_ids() -> None:
    world, states = table_world(LAW), sequences(4, 3)
    condition = world.encode([""] * len(states))
    at_ids = world.step(states, 1, condition)
    relaxed = world.step(world.relaxed(states), 1, condition)
    there = states != 3
    x = torch.where(there, states, torch.arange(3))
    torch.testing.assert_close(at_ids.transition.log_prob(x), relaxed.transition.log_prob(x))
    assert torch.equal(at_ids.clean[there], states[there])
    torch.testing.assert_close(relaxed.clean.sum(-1), torch.ones(64, 3))
    assert torch.equal(relaxed.clean.argmax(-1), at_ids.clean)


def test_a_straight_through_chain_has_the_value_of_the_chain() -> None:
    world = table_world(LAW)
    condition = world.encode([""] * 50)
    x, y = world.prior(50), world.relaxed(world.prior(50))
    for k in range(world.num_steps):
        x = world.step(x, k, condition).transition.sample(stream(k))
        y = world.step(y, k, condition).transition.rsample(stream(k))
        torch.testing.assert_close(y, world.relaxed(x))
    assert y.requires_grad
    assert torch.equal(world.decode(y).ids.argmax(-1), world.decode(x).ids)


def test_the_released_law_knows_its_symbols_with_certainty_and_ends_before_zero() -> None:
    world = table_world(LAW, relaxation="released", final_time=1e-5)
    assert float(world.times[-1]) == pytest.approx(1e-5)
    x = torch.tensor([[[0.4, 0.3, 0.1, 0.2], [0.1, 0.1, 0.1, 0.7], [0.1, 0.4, 0.4, 0.1]]])
    logits = world.step(x, 1, world.encode([""])).transition.logits
    assert logits[0, 0, :3].softmax(-1).tolist() == [1, 0, 0]
    assert float(logits[0, 1, :3].detach().softmax(-1).max()) < 0.99
    assert logits[0, 2, :3].softmax(-1).tolist() == [0, 1, 0]


def test_a_lower_temperature_sharpens_the_law_of_each_symbol() -> None:
    one = random_law(3, 1)
    sharp = (one.log() / 0.5).softmax(0)
    assert_follows(sample(table_world(one, 3, 1, temperature=0.5)), sharp)


def test_masked_states_are_no_samples() -> None:
    world = table_world(LAW)
    with pytest.raises(ValueError, match="masked"):
        world.decode(torch.tensor([[0, 1, 3]]))
    found = world.decode(torch.tensor([[0, 1, 2]]))
    assert found.ids.tolist() == [[0, 1, 2]]
    assert found.alphabet == "ACG"
    assert torch.equal(world.latents(found), found.ids)
    soft = Tokens(torch.tensor([[[0.1, 0.8, 0.1]]]), "ACG")
    assert world.latents(soft).tolist() == [[1]]


def test_decoded_relaxations_are_sequences_whose_gradient_reaches_the_weights() -> None:
    world = table_world(LAW)
    x = torch.tensor([[[0.5, 0.2, 0.1, 0.2]]]).requires_grad_()
    ids = world.decode(x).ids
    torch.testing.assert_close(ids.detach(), torch.tensor([[[1.0, 0, 0]]]))
    ids[0, 0, 1].backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[[0, 1, 0, 0]]]


@pytest.mark.parametrize(
    "wrong",
    [{"num_steps": 0}, {"temperature": 0.0}, {"gumbel_temperature": -1.0}, {"final_time": 1.0}],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        table_world(LAW, **wrong)


def test_a_saved_pipeline_is_found_again(tmp_path) -> None:
    network = ConvDenoiser(3, hidden=8, stacks=1, dilations=(1,), kernel=3)
    pipe = MaskedDiffusionPipeline(network, MaskedDiffusionScheduler(3), "ACG", 5)
    world = MaskedDiffusion(pipe, 4)
    world.save_network(tmp_path)
    again = MaskedDiffusion(str(tmp_path), 4)
    assert torch.equal(sample(world, n=50), sample(again, n=50))
    with pytest.raises(FileNotFoundError):
        MaskedDiffusion(str(tmp_path / "nothing"))


def test_the_clean_prediction_is_the_likeliest_symbols_or_their_weights() -> None:
    state = torch.tensor([[2, 3, 3]])
    p = conditionals(LAW, 3)[number(state[0], 4)].float()
    mode = table_world(LAW).step(state, 1, table_world(LAW).encode([""])).clean
    assert mode.tolist() == [[2, *p[1:].argmax(-1).tolist()]]
    world = table_world(LAW, prediction="mean")
    weights = world.step(state, 1, world.encode([""])).clean
    torch.testing.assert_close(weights[0], torch.cat([torch.tensor([[0.0, 0, 1]]), p[1:]]))


def test_the_chain_masks_as_much_as_the_noise_of_its_times() -> None:
    world = table_world(LAW)
    path = rollout(world, world.encode([""] * N), None, stream(3), rows=N)
    shares = (path.states == 3).double().mean((0, 2))
    error = torch.sqrt(world.masked * (1 - world.masked) / (3 * N))
    assert bool(((shares - world.masked).abs() <= 4 * error).all())
