"""The drop-in against laws that are known, with every number through the scheduler's hook.

Targets are tilts of the chain's own law, by quadrature or in closed form, so that they hold for few
steps too. Estimates are pooled over independent systems, each weighted by its own evidence: that
has no bias from the few particles of a system, so its distance to the target is noise only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from steering.mixture_pipeline import (
    BIMODAL,
    SCHEDULERS,
    STEPS,
    Chain,
    decode,
    levels,
    run,
    step_law,
)
from torch import Tensor

from diffreward.pipelines.gaussian_mixture import GaussianMixture, LinearReward, QuadraticReward
from diffreward.reward import RewardFunction
from diffreward.samples import vectors
from diffreward.steering import (
    DAS,
    SVDD,
    FKSteering,
    Guidance,
    Steered,
    SteeringMethod,
)
from diffreward.steering.drop_in.run import Value
from diffreward.steering.drop_in.session import State
from diffreward.steering.methods import POTENTIALS

NORMAL = GaussianMixture([1.0], [[0.3]], 0.8)
UPWARDS = LinearReward([1.0])


def chain_of(scheduler: str, method: SteeringMethod, law: GaussianMixture = BIMODAL) -> Chain:
    """The chain that a method weighs: ours from the first scored state on, if particles part."""
    settings = method.settings()
    ours = settings.selects or (settings.guidance > 0 and settings.corrected)
    first = settings.scored_steps(STEPS)[0] if ours else STEPS
    etas = [float(scheduler == "ddpm" or k >= first) for k in range(STEPS)]
    return Chain(law, levels(SCHEDULERS[scheduler], STEPS), etas)


@dataclass(frozen=True)
class Target:
    """Expectations of x, x^2 and tanh(3 x), which tells the modes apart, and the log evidence."""

    x: float
    square: float
    side: float
    log_z: float

    @property
    def variance(self) -> float:
        return self.square - self.x**2


def tilt(chain: Chain, log_weight: Tensor) -> Target:
    """Of the chain's law times exp(log_weight), (n,) at its last nodes."""
    x, w = chain.nodes[-1], chain.masses() * log_weight.exp()
    return Target(*(features(x) @ w / w.sum()).tolist(), w.sum().log().item())


def pooled(steered: Steered, weights: Tensor, features: Tensor, log_z: float) -> Tensor:
    """Estimates of features (F, G * N) and of 1 = Z / Z, and their standard errors, (2, F + 1)."""
    z = (steered.log_evidence - log_z).exp()
    found = (weights * features.double().reshape(-1, *weights.shape)).sum(2)
    means = found @ z / z.sum()
    errors = (z * (found - means[:, None])).norm(dim=1) / z.sum()
    evidence = torch.stack([z.mean(), z.std() / math.sqrt(len(z))])
    return torch.cat([torch.stack([means, errors]), evidence[:, None]], 1)


def features(x: Tensor) -> Tensor:
    """What a `Target` expects of points (n,), (3, n)."""
    return torch.stack([x, x.square(), (3 * x).tanh()])


def distances(steered: Steered, target: Target) -> Tensor:
    """How many standard errors the estimates are away from the target, (4,)."""
    exact = torch.tensor([target.x, target.square, target.side, 1.0], dtype=torch.float64)
    found = features(vectors(steered.particles)[:, 0])
    means, errors = pooled(steered, steered.weights, found, target.log_z)
    # The comparison must be able to fail: the errors are small against the tilt (about 1).
    assert errors.max() < 0.06
    return (means - exact).abs() / errors


def moves_of(chain: Chain, law: GaussianMixture, etas: Sequence[float]) -> tuple[float, float]:
    """Mean and variance of a chain with one Gaussian, whose steps are affine."""
    mean, variance = 0.0, 1.0
    spread, points = law.stds.square(), torch.tensor([0.0, 1.0], dtype=torch.float64)
    for here, there, eta in zip(chain.route, chain.route[1:], etas, strict=False):
        alpha, sigma = here
        gain = alpha * spread / (alpha**2 * spread + sigma**2)
        clean = law.means[0] + gain * (points - alpha * law.means[0])
        (low, high), std = step_law(points, clean, here, there, eta)
        factor = (high - low).item()
        mean, variance = factor * mean + low.item(), factor**2 * variance + std**2
    return mean, variance


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_quadrature_is_exact_for_a_single_gaussian(scheduler, eta) -> None:
    """Closed form: the steps of one Gaussian are affine, so its chain and its tilts are normal."""
    route, etas = levels(SCHEDULERS[scheduler], STEPS), [eta] * STEPS
    chain = Chain(NORMAL, route, etas)
    mean, variance = moves_of(chain, NORMAL, etas)
    target = tilt(chain, 0.7 * chain.nodes[-1])
    found = torch.tensor([target.x, target.variance, target.log_z])
    exact = [mean + 0.7 * variance, variance, 0.7 * mean + 0.7**2 * variance / 2]
    torch.testing.assert_close(found, torch.tensor(exact), rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    "method",
    [
        *(FKSteering(32, 0.7, name, interval=4, start=0.4, stop=0.8) for name in POTENTIALS),
        DAS(8, 0.7),
        DAS(8, 0.7, tempering="none"),
    ],
)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_single_gaussian_is_tilted_as_the_closed_form_says(scheduler, method) -> None:
    chain = chain_of(scheduler, method, NORMAL)
    first = next((k for k, move in enumerate(chain.moves) if move is not None), STEPS)
    mean, variance = moves_of(chain, NORMAL, [float(k >= first) for k in range(STEPS)])
    tilted, log_z = mean + 0.7 * variance, 0.7 * mean + 0.7**2 * variance / 2
    # tanh has no closed form here.
    target = Target(tilted, variance + tilted**2, math.nan, log_z)
    steered = run(SCHEDULERS[scheduler], UPWARDS, method, 256, NORMAL)
    assert (distances(steered, target)[[0, 1, 3]] < 4).all()


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scheme", ["systematic", "ssp", "multinomial"])
@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_tilted_law_of_the_chain_is_hit_by_every_setting(
    scheduler, potential, scheme, threshold
) -> None:
    # Three scored states: the sum of many rewards would give weights without a variance.
    method = FKSteering(64, 1.0, potential, scheme, threshold, interval=4, start=0.4, stop=0.8)
    chain = chain_of(scheduler, method)
    steered = run(SCHEDULERS[scheduler], UPWARDS, method, 160)
    if threshold != 0.5:
        assert (steered.lineage != torch.arange(64)).any() == (threshold == 1)
    assert (distances(steered, tilt(chain, chain.nodes[-1])) < 4).all()


@pytest.mark.parametrize("tempering", ["none", "linear", "exponential"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_das_has_the_same_target_wherever_its_gradients_push(scheduler, tempering) -> None:
    method = DAS(8, 2.0, tempering)
    chain = chain_of(scheduler, method)
    target = tilt(chain, -(chain.nodes[-1] - 1.0).square())
    assert (
        distances(run(SCHEDULERS[scheduler], QuadraticReward([1.0]), method, 1000), target) < 4
    ).all()


PLANE = GaussianMixture([0.5, 0.3, 0.2], [[-1.0, 0.0], [1.0, 1.0], [0.5, -1.5]], [0.3, 0.4, 0.2])


@pytest.mark.parametrize(
    "method",
    [
        FKSteering(64, 1.0, interval=5),
        FKSteering(64, 1.0, "max", "ssp", 1.0, interval=10, start=0.3),
        DAS(16, 1.0),
    ],
)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_modes_in_the_plane_weigh_what_the_closed_form_says(scheduler, method) -> None:
    """What 50 steps leave is allowed for: measured with 100,000 weighted samples of the plain
    chain, 0.006 in the weights of the modes and 0.017 in the log evidence."""
    target, log_z = PLANE.tilt_quadratic([1.0, 0.0], 1.0)
    steered = run(SCHEDULERS[scheduler], QuadraticReward([1.0, 0.0]), method, 64, PLANE, steps=50)
    nearest = torch.cdist(vectors(steered.particles).double(), PLANE.means).argmin(1)
    modes = torch.nn.functional.one_hot(nearest, 3).T
    means, errors = pooled(steered, steered.weights, modes, log_z)
    assert ((means[:3] - target.weights).abs() < 4 * errors[:3] + 0.008).all()
    assert abs(means[3] - 1) < 4 * errors[3] + 0.02
    assert errors.max() < 0.03


def test_a_drawn_particle_follows_the_tilted_law() -> None:
    """One of 64 in each of 1,000 systems, without weights; bias of the order 1.7 / 64."""
    method = FKSteering(64, 1.0, interval=4, select="draw")
    chain = chain_of("ddim", method)
    target = tilt(chain, chain.nodes[-1])
    x = vectors(run(SCHEDULERS["ddim"], UPWARDS, method, 1000).samples)[:, 0]
    assert abs(x.mean() - target.x) < 4 * math.sqrt(target.variance / 1000) + 1.7 / 64
    assert abs((3 * x).tanh().mean() - target.side) < 4 / math.sqrt(1000) + 1.7 / 64


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["ddim", "flow"])
@pytest.mark.parametrize("method", [FKSteering(4, interval=4), DAS(4)])
def test_four_particles_have_no_bias_in_many_systems(scheduler, method) -> None:
    method = replace(method, scale=1.0)
    chain = chain_of(scheduler, method)
    steered = run(SCHEDULERS[scheduler], UPWARDS, method, 16_000)
    assert (distances(steered, tilt(chain, chain.nodes[-1])) < 4).all()
    found = features(vectors(steered.particles)[:, 0])
    assert pooled(steered, steered.weights, found, 0.0)[1, :3].max() < 0.015


def test_weights_that_were_dropped_between_two_selections_would_be_seen() -> None:
    """Below the threshold nothing is selected and weights go on; without them the target is off."""
    method = FKSteering(64, 1.0, interval=4, start=0.4, stop=0.8, ess_threshold=0.5)
    chain = chain_of("ddim", method)
    target = tilt(chain, chain.nodes[-1])
    steered = run(SCHEDULERS["ddim"], UPWARDS, method, 128)
    assert (distances(steered, target) < 4).all()
    even = torch.full_like(steered.weights, 1 / 64)
    x, error = pooled(steered, even, vectors(steered.particles).T, target.log_z)[:, 0]
    assert abs(x - target.x) > 10 * error


@pytest.mark.parametrize(("scheduler", "tempering"), [("ddim", "exponential"), ("flow", "none")])
def test_gradients_are_worth_it_with_four_particles(scheduler, tempering) -> None:
    """Measured over 1,000 systems: root mean square error of E[x] 0.49 and 0.69 (ddim), 0.55 and
    0.79 (flow); standard deviation of the evidence 0.30 and 0.54 (ddim), 0.32 and 0.57 (flow)."""
    errors, spreads, sizes = [], [], []
    for method in (
        DAS(4, 1.0, tempering),
        FKSteering(4, 1.0, interval=1, start=0.0, stop=1.0),
    ):
        chain = chain_of(scheduler, method)
        target = tilt(chain, chain.nodes[-1])
        steered = run(SCHEDULERS[scheduler], UPWARDS, method, 1000)
        x = vectors(steered.particles)[:, 0].reshape(1000, 4)
        errors.append(((steered.weights * x).sum(1) - target.x).square().mean().sqrt())
        spreads.append((steered.log_evidence - target.log_z).exp().std())
        sizes.append(steered.ess[-1].mean())
    assert errors[0] < 0.85 * errors[1]
    assert spreads[0] < 0.75 * spreads[1]
    assert sizes[0] > sizes[1]


def test_gradients_go_with_their_particles() -> None:
    """The target is hit with any gradients, so it is the spread of the evidence that tells: 0.40,
    and 1.02 with the gradient of whoever was in the place before the selection."""
    far = GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], 0.4)
    method = DAS(8, 2.0, ess_threshold=1.0)
    steered = run(SCHEDULERS["ddim"], QuadraticReward([1.0]), method, 1000, far)
    evidence = steered.log_evidence.exp()
    assert evidence.std() < 0.65 * evidence.mean()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_guidance_alone_earns_reward_and_misses_the_tilted_law(scheduler) -> None:
    """It is too sure: a variance of 0.05 where the target's is 0.20."""
    chain = chain_of(scheduler, method := Guidance(2.0))
    reward = -0.5 * (chain.nodes[-1] - 1.5).square()
    target = tilt(chain, 2 * reward)
    steered = run(SCHEDULERS[scheduler], QuadraticReward([1.5]), method, 4000)
    x = vectors(steered.samples)[:, 0]
    # From -1.97 (ddim) over the target's -0.18 to -0.03.
    assert steered.rewards.mean() > chain.masses() @ reward + 1.5
    assert x.mean() > target.x + 0.2
    assert x.var() < 0.5 * target.variance


def soft_value(chain: Chain, log_weight: Tensor) -> Value:
    """log E[exp(log_weight) | state] of the chain, in nats."""
    table = chain.log_values(log_weight)

    def value(state: State, prompts: Sequence[str]) -> Tensor:
        nodes, values = chain.nodes[state.number], table[state.number]
        x = state.x[:, 0, 0, 0].double()
        right = torch.searchsorted(nodes, x).clamp(1, len(nodes) - 1)
        share = (x - nodes[right - 1]) / (nodes[right] - nodes[right - 1])
        return values[right - 1].lerp(values[right], share)

    return value


def bias_of_svdd(particles: int, systems: int, reward: RewardFunction, exact: bool) -> Tensor:
    """Of E[x] at scale 1, and its standard error."""
    # The released sample is the last of the draws: the best of the last siblings would be biased.
    method = replace(SVDD(particles, 1.0).settings(), select="draw")
    chain = chain_of("ddim", method)
    log_weight = reward(decode(chain.nodes[-1][:, None]), [])
    value = soft_value(chain, log_weight) if exact else None
    steered = run(SCHEDULERS["ddim"], reward, method, systems, value=value)
    x = vectors(steered.samples)[:, 0].double()
    return torch.stack([x.mean() - tilt(chain, log_weight).x, x.std() / math.sqrt(systems)])


@pytest.mark.parametrize(
    ("candidates", "systems"),
    [
        (2, 4000),
        (4, 4000),
        (8, 4000),
        pytest.param(8, 40_000, marks=pytest.mark.slow),
        pytest.param(16, 40_000, marks=pytest.mark.slow),
    ],
)
def test_svdd_with_the_exact_soft_value_errs_by_one_over_the_candidates(
    candidates, systems
) -> None:
    """Measured with 20,000 systems: bias times M is 0.97, 0.92, 1.00, 0.90 at M = 2, 4, 8, 16."""
    bias, error = bias_of_svdd(candidates, systems, UPWARDS, exact=True)
    assert abs(bias * candidates + 0.95) < 4 * error * candidates + 0.1


def test_svdd_with_the_reward_of_the_clean_prediction_stays_biased() -> None:
    """By 0.18 at M = 64 (4,000 systems, error 0.006), as by 0.17 at 16; the soft value by 0.01."""
    reward = QuadraticReward([1.5], 2.0)
    bias, error = bias_of_svdd(64, 1000, reward, exact=False)
    assert bias > 0.08 + 4 * error
    bias, error = bias_of_svdd(64, 1000, reward, exact=True)
    assert abs(bias) < 4 * error + 0.02
