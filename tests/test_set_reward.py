"""Values of sets and what each sample adds to them: against closed forms and brute force."""

import copy
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import small_runs
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from diffreward.adaptive import adapting, adaptive_parts
from diffreward.algorithm import Algorithm
from diffreward.algorithms.ddpo import DDPO
from diffreward.algorithms.draft import DRaFT
from diffreward.config import instantiate
from diffreward.random import stream
from diffreward.reward import Reward, RewardError, score
from diffreward.samples import Samples, Vectors
from diffreward.set_reward import MeanScore, SetReward, as_set_reward


def itself(samples: Samples, prompts: Sequence[str]) -> Tensor:
    """A row per sample."""
    return samples.values[:, None]


def pairs(samples: Samples, prompts: Sequence[str]) -> Tensor:
    """Two rows per sample, its halves."""
    return samples.values.unflatten(1, (2, -1))


class Spread(SetReward):
    """The trace of the covariance, divided by n: E|x|^2 - |E x|^2."""

    def value(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        weights = torch.full_like(rows[:, 0], 1 / len(rows)) if weights is None else weights
        mean = weights @ rows
        return weights @ (rows - mean).square().sum(1)


class Mean(SetReward):
    """The mean of all numbers of all rows."""

    def value(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        return rows.mean() if weights is None else weights @ rows.mean(1)


def draw(n: int, d: int = 4, seed: int = 0) -> Vectors:
    return Vectors(torch.randn(n, d, generator=stream(seed), dtype=torch.float64))


def names(samples: Samples) -> list[str]:
    return [""] * len(samples)


def test_the_influence_on_a_spread_is_the_squared_distance_from_the_mean() -> None:
    samples = draw(7)
    distances = (samples.values - samples.values.mean(0)).square().sum(1)
    credits = Spread(itself).credits(itself(samples, names(samples)))
    assert torch.allclose(credits, distances - distances.mean(), atol=1e-12)


def test_the_scores_are_the_value_and_the_credits() -> None:
    samples, reward = draw(7), Spread(itself)
    scores = reward(samples, names(samples))
    value = reward.value(samples.values)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, (value + reward.credits(samples.values[:, None])).float())
    assert float(scores.mean()) == pytest.approx(float(value), rel=1e-6)


def test_the_mean_of_the_scores_has_the_gradient_of_the_value() -> None:
    rows = draw(7).values.requires_grad_()
    reward = Spread(itself)
    (expected,) = torch.autograd.grad(reward.value(rows), rows)
    (found,) = torch.autograd.grad(reward(Vectors(rows), [""] * 7).mean(), rows)
    assert torch.allclose(found, expected, rtol=1e-6)


def test_the_credit_of_several_rows_is_that_of_all_weight_on_their_sample() -> None:
    samples, reward, e = draw(5, 6), Spread(pairs), 1e-6
    rows = pairs(samples, names(samples))
    flat, equal = rows.flatten(0, 1), torch.full((10,), 0.1, dtype=torch.float64)
    alone = torch.eye(5, dtype=torch.float64).repeat_interleave(2, 1) / 2
    value = reward.value(flat, equal)
    slopes = torch.stack([(reward.value(flat, (1 - e) * equal + e * w) - value) / e for w in alone])
    assert torch.allclose(reward.credits(rows), slopes, atol=1e-4)
    assert abs(float(reward.credits(rows).sum())) < 1e-12


@pytest.mark.parametrize("embedding", [itself, pairs])
def test_leaving_out_one_is_the_value_without_it(embedding: object) -> None:
    samples, reward = draw(6), Spread(embedding, credit="leave_one_out")
    rows = embedding(samples, names(samples))
    without = [
        float(reward.value(torch.cat([rows[:i], rows[i + 1 :]]).flatten(0, 1))) for i in range(6)
    ]
    mean = sum(without) / 6
    expected = [5 * (mean - value) for value in without]
    assert reward.credits(rows).tolist() == pytest.approx(expected)


def test_leaving_out_agrees_with_influence_in_large_sets() -> None:
    """They differ by terms of the order 1 / n: 2 / (n - 2) of a squared distance here."""
    rows = draw(400).values[:, None]
    influence = Spread(itself).credits(rows)
    without = Spread(itself, credit="leave_one_out").credits(rows)
    assert float((without - influence).norm() / influence.norm()) < 2.5 / 400


@pytest.mark.parametrize("embedding", [itself, pairs])
def test_the_marginal_contribution_is_what_the_bank_gains(embedding: object) -> None:
    past, samples = draw(5, seed=1), draw(3)
    reward = Spread(embedding, credit="marginal", bank=100)
    with adapting(reward):
        reward(past, names(past))
    before, rows = (embedding(each, names(each)) for each in (past, samples))
    gains = [
        float(reward.value(torch.cat([before, row[None]]).flatten(0, 1)))
        - float(reward.value(before.flatten(0, 1)))
        for row in rows
    ]
    with adapting(reward):
        credits = reward.credits(rows)
    expected = [6 * (gain - sum(gains) / 3) for gain in gains]
    assert credits.tolist() == pytest.approx(expected)


def test_the_marginal_contribution_agrees_with_influence_in_large_sets() -> None:
    rows = draw(400).values
    reward = Spread(itself, credit="marginal", bank=400)
    with adapting(reward):
        reward(Vectors(rows), [""] * 400)
    with adapting(reward):
        marginal = reward.credits(rows[:, None])
    influence = Spread(itself).credits(rows[:, None])
    assert float((marginal - influence).norm() / influence.norm()) < 2.5 / 400


def test_without_a_past_the_marginal_contribution_is_that_to_the_others() -> None:
    rows = draw(6).values[:, None]
    marginal = Spread(itself, credit="marginal", bank=3).credits(rows)
    assert torch.equal(marginal, Spread(itself, credit="leave_one_out").credits(rows))


def test_a_marginal_contribution_needs_a_bank() -> None:
    with pytest.raises(ValueError, match="bank > 0"):
        Spread(itself, credit="marginal")


def test_samples_without_rows_have_no_score_and_do_not_count() -> None:
    samples, reward = draw(7), Spread(itself)
    values = samples.values.clone()
    values[2], values[5, 1] = torch.nan, torch.inf
    scores = reward(Vectors(values), names(samples))
    rest = torch.tensor([0, 1, 3, 4, 6])
    assert scores.isnan().tolist() == [False, False, True, False, False, True, False]
    assert torch.equal(scores[rest], reward(samples[rest], [""] * 5))


def test_samples_without_rows_have_no_gradient() -> None:
    values = draw(4).values
    values[1] = torch.nan
    values.requires_grad_()
    scores = Spread(itself)(Vectors(values), [""] * 4)
    (slope,) = torch.autograd.grad(scores[scores.isfinite()].mean(), values)
    assert slope.isfinite().all()
    assert (slope[1] == 0).all() and (slope[0] != 0).all()


@pytest.mark.parametrize(("n", "credit"), [(1, "influence"), (2, "leave_one_out")])
def test_a_set_too_small_for_a_value_has_no_scores(n: int, credit: str) -> None:
    samples = draw(n)
    assert Spread(itself, credit=credit)(samples, names(samples)).isnan().all()


def test_what_has_no_score_still_has_a_graph() -> None:
    """Methods that differentiate take a reward without any for one that they cannot use."""
    values = draw(1).values.requires_grad_()
    scores = Spread(itself)(Vectors(values), [""])
    (slope,) = torch.autograd.grad(scores[scores.isfinite()].sum(), values)
    assert scores.isnan().all() and not slope.any()


def test_one_sample_of_several_rows_is_a_set() -> None:
    samples, reward = draw(1), Spread(pairs)
    value = reward.value(pairs(samples, [""])[0])
    assert reward(samples, [""]).tolist() == pytest.approx([float(value)])


def test_scores_follow_their_samples_when_the_set_is_reordered() -> None:
    samples, reward = draw(5), Spread(itself)
    order = torch.tensor([3, 0, 4, 1, 2])
    scores = reward(samples, names(samples))
    assert torch.allclose(reward(samples[order], names(samples)), scores[order])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_credits_do_not_need_gradients_around_them(mode: type) -> None:
    samples, reward = draw(5), Spread(itself)
    expected = reward(samples, names(samples))
    with mode():
        inside = Vectors(samples.values.clone())
        assert torch.equal(reward(inside, names(samples)), expected)


def test_mixed_precision_around_it_changes_nothing() -> None:
    samples, reward = Vectors(draw(5).values.float()), Spread(itself)
    expected = reward(samples, names(samples))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reward(samples, names(samples)), expected)


def test_rows_in_half_precision_are_compared_in_float32() -> None:
    samples = Vectors(draw(5).values.bfloat16())
    assert Spread(itself).rows(samples, names(samples)).dtype == torch.float32


def test_the_past_joins_a_set_in_training_only() -> None:
    reward = Spread(itself, bank=5)
    first, second, third = draw(4, seed=1), draw(3, seed=2), draw(6, seed=3)
    prompts = names(third)
    alone = reward(third, prompts)
    with adapting(reward):
        reward(first, names(first))
        assert torch.equal(reward(third[:3], [""] * 3), Spread(itself)(third[:3], [""] * 3))
        reward(second, names(second))
    assert torch.equal(reward(third, prompts), alone)
    with adapting(reward):
        scores = reward(third, prompts)
    newest = torch.cat([first.values, third.values[:3], second.values])[-5:]
    together = reward.value(torch.cat([third.values, newest]))
    assert float(scores.mean()) == pytest.approx(float(together), rel=1e-6)
    assert torch.equal(reward.tensors()["bank"], third.values[-5:])


def test_the_past_does_not_make_the_gradient_or_the_credits_smaller() -> None:
    """Those of a mean are the same whatever else is in the set."""
    rows = draw(4, seed=1).values.requires_grad_()
    without = Mean(itself)(Vectors(rows), [""] * 4)
    reward = Mean(itself, bank=20)
    with adapting(reward):
        reward(draw(9, seed=2), [""] * 9)
    with adapting(reward):
        scores = reward(Vectors(rows), [""] * 4)
    assert torch.allclose(scores - scores.mean(), without - without.mean(), atol=1e-6)
    (expected,) = torch.autograd.grad(without.mean(), rows)
    (found,) = torch.autograd.grad(scores.mean(), rows)
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("credit", ["influence", "leave_one_out"])
def test_credits_see_the_past(credit: str) -> None:
    """Of a mean both kinds are what a sample has more than the mean of the samples scored now."""
    reward, samples = Mean(itself, credit, bank=20), draw(4, seed=1)
    with adapting(reward):
        reward(draw(9, seed=2), [""] * 9)
    reward.adapting = True
    centred = samples.values.mean(1) - samples.values.mean()
    found = reward.credits(samples.values[:, None])
    assert torch.allclose(found, centred, atol=1e-12)


def test_the_past_goes_on_after_a_resume() -> None:
    reward, samples = Spread(itself, bank=5), draw(4)
    with adapting(reward):
        reward(draw(9, seed=2), [""] * 9)
    resumed = Spread(itself, bank=5)
    resumed.load(reward.tensors())
    found = []
    for one in (reward, resumed):
        with adapting(one):
            found.append(one(samples, names(samples)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(reward.tensors()["bank"], resumed.tensors()["bank"])


def test_without_a_bank_there_is_no_state() -> None:
    reward = Spread(itself)
    with adapting(reward):
        reward(draw(9), [""] * 9)
    assert reward.tensors() == {}
    assert copy.deepcopy(reward).bank == 0


def test_a_reward_of_single_samples_is_a_set_reward_of_the_mean() -> None:
    reward = as_set_reward(lambda samples, prompts: samples.values[:, 0].float())
    samples = draw(5)
    scores = samples.values[:, 0].float()
    assert isinstance(reward, MeanScore)
    assert torch.allclose(reward(samples, names(samples)), scores)
    assert torch.allclose(reward(samples[:1], [""]), scores[:1])
    assert torch.allclose(reward.credits(scores[:, None, None]), scores - scores.mean())


def test_a_set_reward_is_one_already_and_adaptive_parts_are_found_in_a_mean() -> None:
    spread = Spread(itself)
    assert as_set_reward(spread) is spread
    assert spread in adaptive_parts(as_set_reward(2 * spread + 1.0)).values()


def test_set_rewards_compose() -> None:
    samples = draw(5)
    scores = score(2 * Spread(itself) - Mean(itself), samples, names(samples))
    value = 2 * Spread(itself).value(samples.values) - Mean(itself).value(samples.values)
    assert float(scores.mean()) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize(
    "rows", [torch.zeros(3, 4), torch.zeros(2, 1, 4), torch.zeros(3, 1, 4, dtype=torch.int64)]
)
def test_an_embedding_of_another_shape_is_named(rows: Tensor) -> None:
    with pytest.raises(RewardError, match=r"an embedding returns .* \(3, rows, features\)"):
        Spread(lambda samples, prompts: rows)(draw(3), [""] * 3)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'shapley'"):
        Spread(itself, credit="shapley")
    with pytest.raises(ValueError, match="got -1"):
        Spread(itself, bank=-1)


class Halves:
    """An embedding that a configuration can name."""

    def __init__(self, rows: int = 2) -> None:
        self.rows = rows

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return samples.values.unflatten(1, (self.rows, -1))


def test_a_configuration_names_the_embedding_by_its_class() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Reward, "reward")
    embedding = {"class_path": f"{__name__}.Halves", "init_args": {"rows": 3}}
    made = {"class_path": f"{__name__}.Spread", "init_args": {"embedding": embedding, "bank": 4}}
    reward = instantiate(parser, parser.parse_object({"reward": made})).reward
    assert isinstance(reward, Spread) and reward.embedding.rows == 3 and reward.bank == 4


class Colours(Spread):
    """The spread of the mean colours of pictures."""

    def __init__(self, bank: int = 0) -> None:
        super().__init__(lambda samples, prompts: samples.pixels.mean((2, 3))[:, None], bank=bank)


@pytest.mark.parametrize("algorithm", [DDPO(step_fraction=0.7), DRaFT()], ids=["ddpo", "draft"])
def test_any_method_trains_towards_a_set_and_resumes_with_its_past(
    tmp_path: Path, algorithm: Algorithm
) -> None:
    run = partial(small_runs.run, tmp_path, algorithm=algorithm)
    run("straight", 3, reward=Colours(bank=12), checkpoint_every=1)
    run("resumed", 2, reward=Colours(bank=12), checkpoint_every=1)
    run("resumed", 3, reward=Colours(bank=12), checkpoint_every=1, resume="latest")
    small_runs.assert_equal_runs(tmp_path / "straight", tmp_path / "resumed")


SCRIPT = """
import sys
import torch
from accelerate import Accelerator
sys.path.insert(0, sys.argv[2])
from test_set_reward import Spread, draw, itself
from diffreward.adaptive import adapting
from diffreward.contrast import Everyone
from diffreward.moments import Moments
from diffreward.samples import Vectors

accelerator = Accelerator(cpu=True)
values = draw(7).values
values[5] = torch.nan
everyone = {1: [range(7)], 2: [range(3), range(3, 7)]}[accelerator.num_processes]
own = everyone[accelerator.process_index]
rows = values[own.start : own.stop].requires_grad_()
reward = Spread(itself, bank=6)
with adapting(reward):
    scores = reward(Vectors(rows), [""] * len(rows))
# As a loop does it: the mean over the own samples, weighted by their number, then over processes.
total = scores[scores.isfinite()].sum() / 6
total.backward()
moments = Moments.of(rows).of_all_processes()
groups = torch.arange(7)[own.start : own.stop]
contrasted = Everyone.gathered(rows.detach()[:, None], scores.detach(), groups)
assert torch.equal(contrasted.groups[contrasted.own], groups)
found = [scores.detach(), rows.grad, reward.tensors()["bank"], moments.mean, moments.scatter]
found += [contrasted.rows, contrasted.credits, contrasted.groups]
torch.save(found, f"{sys.argv[1]}/{accelerator.num_processes}-{accelerator.process_index}")
"""


@pytest.mark.slow
def test_the_set_is_that_of_all_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for number in ("1", "2"):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", number]
        subprocess.run(
            [sys.executable, *launcher, str(script), str(tmp_path), str(Path(__file__).parent)],
            check=True,
        )
    one, first, second = (torch.load(tmp_path / name) for name in ("1-0", "2-0", "2-1"))
    for alone, *parts in list(zip(one, first, second, strict=True))[:2]:
        assert torch.allclose(torch.cat(parts), alone, equal_nan=True)
    for alone, *parts in list(zip(one, first, second, strict=True))[2:]:
        assert torch.equal(parts[0].nan_to_num(), parts[1].nan_to_num())
        assert torch.allclose(parts[0], alone, atol=1e-12, equal_nan=True)
