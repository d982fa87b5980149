"""The penalties in closed form, their gradient, their budget, and what a checkpoint keeps."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import small_runs
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffreward.algorithm import Batch, finished_samples
from diffreward.algorithms.awm import AWM
from diffreward.algorithms.ddpo import DDPO
from diffreward.algorithms.diffusion_dpo import DiffusionDPO
from diffreward.algorithms.nft import DiffusionNFT
from diffreward.algorithms.seppo import SePPO
from diffreward.diffusion import Step, Trajectory, rollout
from diffreward.evaluation import Evaluation
from diffreward.matching import Noised, noise, noised_entries
from diffreward.penalty import Distance, Penalty
from diffreward.pipelines.gaussian_mixture import (
    GaussianMixture,
    GaussianMixtureDiffusion,
    LinearReward,
)
from diffreward.policy import Full, Policy
from diffreward.random import stream
from diffreward.replay import Entries, descend_sum, path_entries
from diffreward.settings import Training
from diffreward.training import train
from diffreward.transitions import Dirac, Gaussian

MIXTURE = GaussianMixture([1.0, 2.0], [[-1.0, 0.0], [1.0, 0.5]], 0.5)
WORLD = GaussianMixtureDiffusion(MIXTURE, 5)
STD = 0.4


def steps(apart: Tensor) -> tuple[Step, Step]:
    """Two laws of deviation STD and two clean predictions, both as far apart, (B, D)."""
    start, std = torch.randn(apart.shape, generator=stream(0)), torch.full((len(apart),), STD)
    ours, theirs = (Step(Gaussian(x, std), x) for x in (start + apart, start))
    return ours, theirs


APART = torch.tensor([[0.3, -0.1, 0.2], [0.0, 0.0, 0.0]])
SQUARED = 0.14


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("distance", "of"),
    [
        ("kl", lambda unit: SQUARED / (2 * STD**2) / unit),
        ("chi_squared", lambda unit: math.expm1(SQUARED / STD**2 / unit)),
        ("velocity", lambda unit: SQUARED / WORLD.levels[2].sigma ** 2 / unit),
    ],
)
def test_distances_of_gaussian_steps(distance: Distance, of: object, reduction: str) -> None:
    penalty = Penalty(distance, reduction=reduction)  # type: ignore[arg-type]
    found = penalty.between_steps(*steps(APART), WORLD, 2)
    expected = of(3 if reduction == "mean" else 1)  # type: ignore[operator]
    torch.testing.assert_close(found, torch.tensor([expected, 0.0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("distance", ["kl", "chi_squared"])
def test_divergences_are_those_of_the_densities(distance: Distance) -> None:
    x = torch.linspace(-8, 8, 40001, dtype=torch.float64)
    ours, theirs = (torch.distributions.Normal(m, STD).log_prob(x) for m in (0.25, -0.1))
    ratio = (ours - theirs).exp()
    integrand = (
        ours.exp() * (ours - theirs) if distance == "kl" else theirs.exp() * (ratio - 1) ** 2
    )
    expected = torch.trapezoid(integrand, x)
    penalty = Penalty(distance, reduction="sum")
    found = penalty.between_steps(*steps(torch.tensor([[0.35]])), WORLD, 2)
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("distance", "of"),
    [("kl", lambda s: s / 2), ("chi_squared", math.expm1), ("velocity", lambda s: s)],
)
def test_distances_of_outputs(distance: Distance, of: object, reduction: str) -> None:
    penalty = Penalty(distance, reduction=reduction)  # type: ignore[arg-type]
    found = penalty.between_predictions(APART + 5, torch.full_like(APART, 5), WORLD)
    expected = of(SQUARED / (3 if reduction == "mean" else 1))  # type: ignore[operator]
    torch.testing.assert_close(found, torch.tensor([expected, 0.0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("distance", ["kl", "chi_squared"])
def test_deterministic_steps_have_no_divergence(distance: Distance) -> None:
    step = Step(Dirac(torch.zeros(1, 2)), torch.zeros(1, 2))
    with pytest.raises(TypeError):
        Penalty(distance).between_steps(step, step, WORLD, 2)
    assert Penalty("velocity").between_steps(step, step, WORLD, 2) == 0


@pytest.mark.parametrize("values", [{"weight": -1.0}, {"budget": 0.0}])
def test_impossible_penalties_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="penalty"):
        Penalty(**values)  # type: ignore[arg-type]


def moved_policy(rows: int) -> Policy:
    policy = Full().attach(GaussianMixtureDiffusion(MIXTURE, 5), rows)
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters().values()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream(i)))
    return policy


def gradient(policy: Policy) -> Tensor:
    found = [p.grad for p in policy.parameters().values()]
    return torch.cat([g.flatten() for g in found if g is not None])


def path_of(policy: Policy) -> Trajectory:
    condition = policy.diffusion.encode([""] * 4)
    return rollout(policy.diffusion, condition, stream(1), stream(2))


def apart_on_path(policy: Policy, penalty: Penalty) -> Tensor:
    """Mean over samples of the distance on their paths, with one graph for all."""
    path, diffusion, parts = path_of(policy), policy.diffusion, []
    for k in path.steps:
        ours = diffusion.step(path.states[:, k], k, path.condition)
        with torch.no_grad(), policy.reference():
            theirs = diffusion.step(path.states[:, k], k, path.condition)
        parts.append(penalty.between_steps(ours, theirs, diffusion, k))
    every = torch.stack(parts, 1)
    return (every.mean(1) if penalty.reduction == "mean" else every.sum(1)).mean()


def noised_by(policy: Policy) -> Noised:
    batch = Batch([""] * 2, 2, seed=0)
    samples = finished_samples(policy, LinearReward([1.0, 0.0]), batch, share_start=False)
    return noise(policy, samples, draws=3)


def apart_at_noise(policy: Policy, penalty: Penalty) -> Tensor:
    """Mean over samples and draws, whatever the reduction: draws are no parts of a path."""
    noised, parts = noised_by(policy), []
    for s in range(3):
        arguments = noised.states[s], noised.times[:, s], noised.condition
        ours = policy.diffusion.predict(*arguments)
        with torch.no_grad(), policy.reference():
            theirs = policy.diffusion.predict(*arguments)
        parts.append(penalty.between_predictions(ours, theirs, policy.diffusion))
    return torch.stack(parts).mean()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("distance", ["kl", "chi_squared", "velocity"])
@pytest.mark.parametrize("on_path", [True, False], ids=["on the path", "at noise"])
def test_the_gradient_is_that_of_autograd_also_for_samples_without_weight(
    distance: Distance, reduction: str, on_path: bool
) -> None:
    penalty = Penalty(distance, weight=0.7, reduction=reduction)  # type: ignore[arg-type]
    policy = moved_policy(rows=3)
    exact = (apart_on_path if on_path else apart_at_noise)(policy, penalty)
    (0.7 * exact).backward()
    expected = gradient(policy)
    policy.diffusion.network.zero_grad()
    entries: Entries = (
        path_entries(policy, path_of(policy))
        if on_path
        else noised_entries(policy, noised_by(policy))
    )
    generator = descend_sum(policy, entries, torch.zeros(entries.shape), penalty)
    while True:
        try:
            next(generator).backward()
        except StopIteration as end:
            metrics = end.value
            break
    assert expected.norm() > 1e-4
    torch.testing.assert_close(gradient(policy), expected, rtol=1e-4, atol=1e-6)
    assert metrics["penalty"] == pytest.approx(exact.item(), rel=1e-5)
    assert metrics["loss"] == 0


def test_an_adaptive_weight_follows_the_distance_by_at_most_a_fifth() -> None:
    policy = moved_policy(rows=4)
    penalty = Penalty(weight=0.5, budget=2.0)
    assert penalty.coefficient(policy) == 0.5
    expected = 0.5
    for distance, factor in ((8.0, 1.2), (2.2, 1.1), (2.0, 1.0), (1.8, 1 / 1.1), (0.0, 1 / 1.2)):
        penalty.adapt(policy, distance)
        expected *= factor
        assert penalty.coefficient(policy) == pytest.approx(expected)
    for fixed in (replace(penalty, budget=None), replace(penalty, over_budget="stop")):
        fixed.adapt(policy, 100.0)
        assert penalty.coefficient(policy) == pytest.approx(expected)


def test_a_budget_is_exhausted_only_where_it_is_to_stop_the_run() -> None:
    stop = Penalty(budget=2.0, over_budget="stop")
    assert stop.exhausted(2.1) and not stop.exhausted(2.0)
    assert not Penalty(budget=2.0).exhausted(99.0) and not Penalty().exhausted(99.0)


def test_the_adapted_weight_is_the_one_that_counts() -> None:
    policy, penalty = moved_policy(rows=4), Penalty(weight=0.5, budget=1e-6)
    entries, zero = path_entries(policy, path_of(policy)), torch.zeros(4, 5)
    total = [sum(t.item() for t in descend_sum(policy, entries, zero, penalty))]
    penalty.adapt(policy, 1.0)
    total.append(sum(t.item() for t in descend_sum(policy, entries, zero, penalty)))
    assert total[1] == pytest.approx(1.2 * total[0])


def test_stop_ends_a_run_early_with_its_weights_saved(tmp_path: Path) -> None:
    # The first update measures 0, before the weights change; the second is over the budget.
    penalty = Penalty(weight=1e-6, budget=1e-12, over_budget="stop")
    run = small_runs.run(tmp_path, updates=4, algorithm=DDPO(penalty=penalty))
    lines = [line for line in small_runs.metrics(run.folder) if line["kind"] == "update"]
    assert [line["update"] for line in lines] == [1, 2]
    assert lines[0]["penalty"] == 0 and float(lines[1]["penalty"]) > 1e-12  # type: ignore[arg-type]
    assert any(t.any() for name, t in small_runs.weights(run.folder).items() if "lora_B" in name)
    assert small_runs.metrics(run.folder)[-1] == {
        **small_runs.metrics(run.folder)[-1],
        "kind": "evaluation",
        "update": 2,
    }


def test_roles_and_numbers_are_what_they_were_after_loading() -> None:
    policy = moved_policy(rows=4)
    policy.keep("old")
    policy.keep("version 1")
    policy.numbers["penalty coefficient"] = 0.1 * 1.2**3
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.add_(1.0)
    policy.keep("old", decay=0.3)
    other = moved_policy(rows=4)
    other.load_kept(policy.kept())
    assert other.roles == policy.roles and other.numbers == policy.numbers
    ours, theirs = policy.kept(), other.kept()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


REMEMBERING = {
    "an adapted weight": DDPO(penalty=Penalty(weight=0.1, budget=1e-9)),
    "an average": DiffusionNFT(draws=2, penalty=Penalty("velocity", 1e-3)),
    "two roles": AWM(draws=2, inner_steps=2),
    "a refreshed anchor": DiffusionDPO(refresh_every=2),
    "earlier versions": SePPO(keep_every=1, kept=2),
}


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_resumed_run_remembers(tmp_path: Path, name: str) -> None:
    def run(output: str, updates: int, **more: object) -> Path:
        return train(
            GaussianMixtureDiffusion(MIXTURE, 5),
            REMEMBERING[name],
            LinearReward([1.0, 0.0]),
            ["a", "b"],
            Evaluation(samples=2, every=0, shown=0),
            Full(),
            Training(
                updates=updates,
                prompts_per_update=2,
                samples_per_prompt=3,
                output=str(tmp_path / output),
                learning_rate=1e-2,
                **more,  # type: ignore[arg-type]
            ),
        ).folder

    straight = run("straight", 4)
    run("resumed", 2, checkpoint_every=2)
    resumed = run("resumed", 4, resume="latest")
    ours, theirs = (load_file(f / "weights" / "network.safetensors") for f in (straight, resumed))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    last = [small_runs.metrics(folder)[-2] for folder in (straight, resumed)]
    assert last[0] == last[1] and last[0]["kind"] == "update"


def test_a_penalty_holds_the_policy_back() -> None:
    def after(penalty: Penalty) -> float:
        policy = Full().attach(GaussianMixtureDiffusion(MIXTURE, 5), rows=64)
        optimizer = torch.optim.Adam(policy.parameters().values(), lr=3e-3)
        algorithm = DiffusionDPO(beta=10, reduction="mean", penalty=penalty)
        reward = LinearReward([1.0, 0.0])
        for update in range(1, 11):
            optimizer.zero_grad()
            experience = algorithm.collect(policy, reward, Batch([""] * 2, 8, 0, update))
            for loss in algorithm.losses(policy, experience, 0):
                loss.backward()
            optimizer.step()
        with torch.no_grad():
            return float(apart_at_noise(policy, Penalty("velocity")))

    assert after(Penalty("velocity", 10.0)) < 0.3 * after(Penalty("velocity", 0.0))
