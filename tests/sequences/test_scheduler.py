"""Masking and its reversal: closed forms, exact laws of all samplers, and random numbers."""

import itertools
import math

import pytest
import torch
from sequences.exact_world import clean_law, exact_pipeline, excess, step_laws
from torch import Tensor

from diffreward.enumeration import sequences
from diffreward.pipelines.enumerable import random_law, total_variation
from diffreward.random import stream
from diffreward.sequences.samplers import SAMPLERS
from diffreward.sequences.scheduler import MaskedDiffusionScheduler
from diffreward.sequences.subs import subs_log_probs

V = 3
INDEPENDENT = ["ancestral", "remdm_cap", "remdm_rescale", "remdm_loop"]


def drawn(n: int, steps: int, length: int = 3, **scheduler: object) -> Tensor:
    """Sequences (n, L) of the exact pipeline."""
    pipe = exact_pipeline(V, length, **scheduler)
    generator = stream(0, "drawn", str(scheduler))
    return pipe([""], steps, n, generator=generator, output_type="pt").sequences


@pytest.mark.parametrize("noise", ["log_linear", "cosine"])
def test_the_loss_weight_is_the_derivative_of_the_log_of_the_masked_share(noise: str) -> None:
    scheduler = MaskedDiffusionScheduler(noise=noise, epsilon=1e-3)
    t = torch.tensor([0.01, 0.3, 0.7, 0.99], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(scheduler.masked_share(t).log().sum(), t)
    torch.testing.assert_close(scheduler.loss_weight(t), slope)


def test_masked_shares_are_those_of_the_papers() -> None:
    t = torch.tensor([0.0, 1 / 3, 1.0], dtype=torch.float64)
    linear = MaskedDiffusionScheduler(epsilon=1e-3).masked_share(t)
    torch.testing.assert_close(linear, (1 - 1e-3) * t)
    cosine = MaskedDiffusionScheduler(noise="cosine").masked_share(t)
    torch.testing.assert_close(cosine, torch.tensor([0.0, 0.5, 1.0]).double())


def test_times_go_from_one_to_zero() -> None:
    scheduler = MaskedDiffusionScheduler()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [1.0, 0.75, 0.5, 0.25]
    assert scheduler.times.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [scheduler.index_for_timestep(t) for t in scheduler.timesteps] == [0, 1, 2, 3]


def test_noise_masks_the_share_of_each_rows_time() -> None:
    scheduler = MaskedDiffusionScheduler(vocab_size=V, noise="cosine")
    ids = torch.randint(V, (3, 10_000), generator=stream(0, "ids"))
    t = torch.tensor([0.0, 0.4, 1.0])
    noisy = scheduler.add_noise(ids, stream(0, "noise"), t)
    assert torch.equal(noisy[noisy != V], ids[noisy != V])
    share = (noisy == V).double().mean(1)
    assert share[0] == 0 and share[2] == 1
    # Standard error sqrt(.59 * .41 / 10000) = .005.
    assert abs(share[1] - math.sin(0.2 * math.pi)) < 0.02


def test_noise_of_a_row_depends_on_its_generator_only() -> None:
    scheduler = MaskedDiffusionScheduler()
    ids, t = torch.zeros(4, 50, dtype=torch.int64), torch.full((4,), 0.5)
    whole = scheduler.add_noise(ids, [stream(0, i) for i in range(4)], t)
    assert torch.equal(whole[2:3], scheduler.add_noise(ids[:1], [stream(0, 2)], t[:1]))


def test_subs_gives_no_mask_and_keeps_what_is_shown() -> None:
    logits = torch.tensor([[[0.0, math.log(3)], [5.0, 1.0]]])
    found = subs_log_probs(logits, torch.tensor([[2, 1]]))
    expected = torch.tensor([[[0.25, 0.75], [0.0, 1.0]]])
    torch.testing.assert_close(found.exp(), expected)
    assert found[0, 1].tolist() == [-math.inf, 0.0]


def test_an_ancestral_step_is_the_posterior_of_the_forward_process() -> None:
    """By Bayes: revealed with (m(t) - m(s)) / m(t), as the denoiser says."""
    scheduler = MaskedDiffusionScheduler(vocab_size=2, noise="cosine")
    scheduler.set_timesteps(3)
    logits = torch.tensor([[[0.0, math.log(3)], [5.0, 1.0]]])
    law = scheduler.step_log_probs(logits, 2 / 3, torch.tensor([[2, 1]])).exp()
    kept = math.sin(math.pi / 6) / math.sin(math.pi / 3)
    expected = torch.tensor([[[0.25 * (1 - kept), 0.75 * (1 - kept), kept], [0.0, 1.0, 0.0]]])
    torch.testing.assert_close(law, expected)


def test_a_remasking_step_is_that_of_remdm() -> None:
    """The formulas of the paper, with its alpha = 1 - t: masks come and go, 1 - alpha_s stay."""
    logits = torch.tensor([[[0.0, math.log(3)], [5.0, 1.0]]])
    for sampler, sigma in (("remdm_cap", 0.2), ("remdm_rescale", 0.2 * 1.0), ("ancestral", 0.0)):
        scheduler = MaskedDiffusionScheduler(vocab_size=2, sampler=sampler, eta=0.2)
        scheduler.set_timesteps(4)
        law = scheduler.step_log_probs(logits, 0.5, torch.tensor([[2, 1]])).exp()
        later, now = 0.75, 0.5
        most = (1 - later) / now
        sigma = sigma * most if sampler == "remdm_rescale" else sigma
        revealed = (later - (1 - sigma) * now) / (1 - now)
        stays = (1 - later - sigma * now) / (1 - now)
        expected = [[0.25 * revealed, 0.75 * revealed, stays], [0.0, 1 - sigma, sigma]]
        torch.testing.assert_close(law[0], torch.tensor(expected))


def test_conf_masks_again_where_the_symbol_was_unlikely() -> None:
    scheduler = MaskedDiffusionScheduler(vocab_size=2, sampler="remdm_conf")
    scheduler.set_timesteps(4)
    logits = torch.tensor([[[-math.inf, 0.0], [0.0, math.log(3)], [0.0, 0.0]]]).expand(4000, -1, -1)
    state = torch.full((4000, 3), 2)
    for t in (1.0, 0.75):
        state = scheduler.step(logits, t, state, stream(0, "conf", str(t))).prev_sample
    remasked = scheduler.step_log_probs(logits, 0.5, state).exp()[..., 2]
    rows = (state == 1).all(1)  # revealed with probabilities 1, 3/4 and 1/2
    assert rows.any() and not rows.all()
    expected = 0.5 * torch.tensor([-1.0, -0.75, -0.5]).softmax(0)
    torch.testing.assert_close(remasked[rows], expected.expand(int(rows.sum()), 3))
    hidden = state == 2
    torch.testing.assert_close(remasked[hidden], torch.full_like(remasked[hidden], 0.5))


@pytest.mark.parametrize("noise", ["log_linear", "cosine"])
@pytest.mark.parametrize("sampler", INDEPENDENT)
def test_the_masked_share_after_each_step_is_that_of_the_schedule(sampler, noise) -> None:
    pipe = exact_pipeline(V, 2, sampler=sampler, noise=noise, eta=0.3)
    masked = (sequences(V + 1, 2) == V).double().mean(1)
    shares = torch.stack([law @ masked for law in step_laws(pipe, 20)])
    times = torch.linspace(1, 0, 21, dtype=torch.float64)
    expected = SAMPLERS[sampler].shares(pipe.scheduler.masked_share, times)
    torch.testing.assert_close(shares, expected, atol=1e-6, rtol=0)
    # ReMDM-loop rests at alpha = 0.9.
    resting = (shares - 0.1).abs() < 1e-6
    assert (resting.sum() > 5) == (sampler == "remdm_loop")


@pytest.mark.parametrize("noise", ["log_linear", "cosine"])
def test_the_error_of_ancestral_steps_falls_with_the_square_of_their_number(noise: str) -> None:
    data = random_law(V, 3)
    pipe = exact_pipeline(V, 3, noise=noise)
    errors = []
    for steps in (16, 32, 64, 128):
        found = clean_law(pipe, steps)
        torch.testing.assert_close(found.sum().item(), 1.0, atol=1e-6, rtol=0)
        errors.append((found * (found / found.sum() / data).log()).sum().log2().item())
    slopes = [after - before for before, after in itertools.pairwise(errors)]
    assert max(abs(slope + 2) for slope in slopes) < 0.2


@pytest.mark.parametrize("sampler", ["remdm_cap", "remdm_rescale"])
def test_remasking_keeps_the_law_as_steps_become_many(sampler: str) -> None:
    """Slowly: what is masked together late is revealed together. The error is as T^(-1/2)."""
    data, pipe = random_law(V, 3), exact_pipeline(V, 3, sampler=sampler, eta=0.1)
    far, near = (total_variation(clean_law(pipe, steps), data) for steps in (128, 512))
    assert 0.4 < near / far < 0.6 and near < 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "ancestral"},
        {"sampler": "ancestral", "noise": "cosine"},
        {"sampler": "remdm_cap", "eta": 0.3},
        {"sampler": "remdm_loop", "eta": 0.3},
    ],
    ids=str,
)
def test_samples_follow_the_exact_law_of_the_steps(settings: dict[str, object]) -> None:
    law = clean_law(exact_pipeline(V, 3, **settings), 6)
    assert excess(drawn(40_000, 6, **settings), law / law.sum(), V) < 4


def test_first_hitting_has_no_error_at_as_many_steps_as_positions() -> None:
    data = random_law(V, 3)
    for steps in (3, 8):
        assert excess(drawn(40_000, steps, sampler="first_hitting"), data, V) < 4
    # Two positions at once, and ancestral steps, are seen to be others.
    assert excess(drawn(40_000, 2, sampler="first_hitting"), data, V) > 8
    assert excess(drawn(40_000, 3), data, V) > 8


def test_confidence_changes_the_law_and_says_so() -> None:
    assert excess(drawn(40_000, 3, sampler="confidence"), random_law(V, 3), V) > 8
    scheduler = MaskedDiffusionScheduler(sampler="confidence")
    assert scheduler.__doc__ is not None and "CHANGES THE LAW" in scheduler.__doc__
    with pytest.raises(TypeError, match="not independent"):
        scheduler.step_log_probs(torch.zeros(1, 2, 4), 1.0, torch.full((1, 2), 4))


def test_confidence_reveals_the_surest_first() -> None:
    scheduler = MaskedDiffusionScheduler(vocab_size=2, sampler="confidence")
    scheduler.set_timesteps(3)
    logits, state = torch.tensor([[[0.0, 2.0], [0.0, 90.0], [0.0, 50.0]]]), torch.full((1, 3), 2)
    order = []
    for t in scheduler.timesteps:
        state = scheduler.step(logits, t, state, stream(0, "sure")).prev_sample
        order.append((state != 2).tolist()[0])
    assert order == [[False, True, False], [False, True, True], [True, True, True]]


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("steps", [1, 3, 30])
def test_the_last_step_leaves_no_mask(sampler: str, steps: int) -> None:
    ids = drawn(50, steps, sampler=sampler, epsilon=1e-3)
    assert ids.min() >= 0 and ids.max() < V


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_rows_numbers_are_its_generators(sampler: str) -> None:
    scheduler = MaskedDiffusionScheduler(sampler=sampler)
    logits = torch.randn(5, 7, 4, generator=stream(0, "logits"))
    state = torch.full((5, 7), 4)

    def finished(rows: list[int]) -> Tensor:
        scheduler.set_timesteps(6)
        sources, x = [stream(1, row) for row in rows], state[rows]
        for t in scheduler.timesteps:
            x = scheduler.step(logits[rows], t, x, sources).prev_sample
        return x

    whole = finished([0, 1, 2, 3, 4])
    assert torch.equal(finished([3, 1]), whole[[3, 1]])
    assert not torch.equal(whole[0], whole[1])


def test_a_step_predicts_the_likeliest_clean_symbols() -> None:
    scheduler = MaskedDiffusionScheduler(vocab_size=2)
    logits = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    state = torch.tensor([[2, 2, 1]])
    output = scheduler.step(logits, 1.0, state, stream(0))
    assert output.pred_original_sample.tolist() == [[1, 0, 1]]
    again = scheduler.step(logits, 1.0, state, stream(0), return_dict=False)
    assert torch.equal(again[0], output.prev_sample)


def test_temperature_and_nucleus_sharpen_the_law() -> None:
    law = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits, state = law.log().expand(1, 1, 4), torch.full((1, 1), 4)

    def clean(**settings: float) -> Tensor:
        scheduler = MaskedDiffusionScheduler(**settings)
        return scheduler.clean_log_probs(logits, state).exp().flatten()

    torch.testing.assert_close(clean(), law)
    torch.testing.assert_close(clean(temperature=0.5), law**2 / (law**2).sum())
    torch.testing.assert_close(clean(nucleus=0.7), torch.tensor([0.625, 0.375, 0.0, 0.0]))
    torch.testing.assert_close(clean(nucleus=0.01), torch.tensor([1.0, 0.0, 0.0, 0.0]))


def test_the_step_law_is_differentiable() -> None:
    scheduler = MaskedDiffusionScheduler(vocab_size=2)
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    law = scheduler.step_log_probs(logits, 1.0, torch.tensor([[2, 1]]))
    law[0, 0, 0].backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[[0.5, -0.5], [0.0, 0.0]]]))


def test_a_scheduler_comes_back_from_its_folder(tmp_path) -> None:
    made = MaskedDiffusionScheduler(
        vocab_size=20,
        noise="cosine",
        epsilon=1e-3,
        sampler="remdm_cap",
        eta=0.1,
        temperature=0.7,
        nucleus=0.9,
    )
    made.save_pretrained(tmp_path)
    loaded = MaskedDiffusionScheduler.from_pretrained(tmp_path)
    names = ("vocab_size", "noise", "epsilon", "sampler", "eta", "temperature", "nucleus")
    assert [loaded.config[name] for name in names] == [made.config[name] for name in names]
    other = MaskedDiffusionScheduler.from_config(made.config, sampler="first_hitting")
    assert other.config.sampler == "first_hitting" and other.config.noise == "cosine"


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise": "linear"},
        {"sampler": "gibbs"},
        {"epsilon": 1.0},
        {"eta": 1.5},
        {"temperature": 0.0},
        {"nucleus": 0.0},
    ],
    ids=str,
)
def test_unknown_names_and_numbers_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        MaskedDiffusionScheduler(**wrong)


def test_what_is_no_state_or_time_of_the_scheduler_is_refused() -> None:
    scheduler, state = MaskedDiffusionScheduler(), torch.full((2, 3), 4)
    scheduler.set_timesteps(4)
    for t in (0.6, 0.0, 1.25):
        with pytest.raises(ValueError, match=r"one of the 4"):
            scheduler.step(torch.zeros(2, 3, 4), t, state)
    with pytest.raises(ValueError, match=r"\(B, L, 4\)"):
        scheduler.step(torch.zeros(2, 3, 5), 1.0, state)
    with pytest.raises(ValueError, match="at least 1"):
        scheduler.set_timesteps(0)
