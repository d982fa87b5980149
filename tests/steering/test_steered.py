"""Steering against tilted laws that are known: by closed form, by quadrature, by enumeration.

Estimates are pooled over independent systems, each weighted by its own evidence. That estimator has
no bias from the small number of particles in a system, so its distance to the exact value is noise
only; its standard error is the delta method's for a ratio of means over systems.
"""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from diffreward.diffusion import Diffusion
from diffreward.enumeration import number
from diffreward.pipelines.enumerable import (
    EnumerableChain,
    TableReward,
    masked_chain,
    tilt,
    total_variation,
)
from diffreward.pipelines.gaussian_mixture import (
    GaussianMixture,
    GaussianMixtureDiffusion,
    LinearReward,
    QuadraticReward,
)
from diffreward.random import randn, stream
from diffreward.reward import RewardFunction
from diffreward.steering import FKSteering
from diffreward.steering.methods import POTENTIALS, SCHEMES
from diffreward.steering.smc import Cloud, smc
from diffreward.steering.steered import Particles, SteeredDiffusion
from diffreward.transitions import Dirac

UNBIASED = [name for name in SCHEMES if name != "winner"]
BIMODAL = GaussianMixture([0.6, 0.4], [[-1.0], [1.0]], 0.5)


def run(
    diffusion: Diffusion, reward: RewardFunction, systems: int, settings: FKSteering, seed: int = 0
) -> Cloud[Particles]:
    """One generator for all chains: quicker than one per chain, and as good for statistics."""
    noise, resampling = stream(seed, "noise"), stream(seed, "resampling")
    model = SteeredDiffusion(diffusion, reward, [""] * systems, settings, noise, rows=1 << 20)
    return smc(model, settings.particle_filter(systems, resampling))


def assert_moments(
    cloud: Cloud[Particles], mean: float, variance: float, log_z: float, bias: Sequence[float]
) -> None:
    """Mean, variance and evidence of the first coordinate within 4 standard errors (plus bias)."""
    assert cloud.log_evidence is not None
    systems, n = cloud.log_weights.shape
    x, z = cloud.x.x[:, 0].reshape(systems, n).double(), (cloud.log_evidence - log_z).exp()
    first, second = (cloud.weights * x).sum(1), (cloud.weights * x.square()).sum(1)
    m, s = (z @ first) / z.sum(), (z @ second) / z.sum()
    error_m = (z * (first - m)).norm() / z.sum()
    error_v = (z * (second - s - 2 * m * (first - m))).norm() / z.sum()
    error_z = z.std() / math.sqrt(systems)
    assert abs(m - mean) < 4 * error_m + bias[0]
    assert abs(s - m * m - variance) < 4 * error_v + bias[1]
    assert abs(z.mean() - 1) < 4 * error_z + bias[2]
    # The comparison must be able to fail: the errors are small against the tilt (about 1).
    assert max(error_m, error_v, error_z) < 0.05


def quadrature(diffusion: GaussianMixtureDiffusion) -> tuple[Tensor, Tensor]:
    """Grid and masses of the chain's own terminal law in one dimension.

    The trapezoidal rule on Gaussians is exact to exp(-2 (pi std / spacing)^2) < 1e-100 here.
    """
    grid = torch.linspace(-6, 6, 601, dtype=torch.float64)
    mass = diffusion.law.noised(diffusion._coefficients[0][0]).log_prob(grid[:, None]).softmax(0)
    for k in range(diffusion.num_steps):
        with torch.no_grad():
            law = diffusion.step(grid[:, None], k, diffusion.encode([""])).transition
        if isinstance(law, Dirac):
            return law.x[:, 0], mass
        away = (grid - law.mean) / law.std[:, None]
        mass = mass @ (-0.5 * away.square()).softmax(1)
    return grid, mass


@pytest.fixture(scope="module")
def twenty_steps() -> tuple[GaussianMixtureDiffusion, Tensor, Tensor]:
    diffusion = GaussianMixtureDiffusion(BIMODAL, num_steps=20)
    return diffusion, *quadrature(diffusion)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scheme", UNBIASED)
@pytest.mark.parametrize("potential", POTENTIALS)
def test_the_tilted_law_of_the_chain_is_hit_by_every_setting(
    twenty_steps, potential, scheme, threshold
) -> None:
    """Exact: target and reference are both the tilt of the 20-step chain's own law."""
    diffusion, x, mass = twenty_steps
    w = mass * x.exp()  # tilted by exp(1.0 * x)
    log_z, w = w.sum().log().item(), w / w.sum()
    mean, second = (w @ x).item(), (w @ x.square()).item()
    # Three scored states: the sum of many rewards would give weights without a variance.
    settings = FKSteering(64, 1.0, potential, scheme, threshold, interval=4, start=0.4, stop=0.8)
    cloud = run(diffusion, LinearReward([1.0]), 128, settings)
    assert_moments(cloud, mean, second - mean**2, log_z, bias=(0, 0, 0))


@pytest.mark.parametrize("potential", POTENTIALS)
def test_a_single_gaussian_is_tilted_as_the_closed_form_says(potential) -> None:
    """Exact: with optimal variances the chain of one Gaussian has no discretisation error."""
    law = GaussianMixture([1.0], [[0.3]], 0.8)
    diffusion = GaussianMixtureDiffusion(law, num_steps=10)
    settings = FKSteering(32, 0.7, potential, interval=3, start=0.3, stop=1.0)
    for reward, (tilted, log_z) in (
        (LinearReward([1.0]), law.tilt_linear([1.0], 0.7)),
        (QuadraticReward([1.5], 2.0), law.tilt_quadratic([1.5], 2.0, 0.7)),
    ):
        cloud = run(diffusion, reward, 256, settings)
        mean, variance = tilted.mean().item(), tilted.variance().item()
        assert_moments(cloud, mean, variance, log_z, bias=(0, 0, 0))


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_a_mixture_in_the_plane_is_tilted_as_the_closed_form_says(threshold) -> None:
    """Closed form. What 100 steps leave is allowed for: the slow test in test_gaussian_mixture."""
    law = GaussianMixture([0.5, 0.3, 0.2], [[-1.0, 0.0], [1.0, 1.0], [0.5, -1.0]], [0.5, 0.6, 0.4])
    diffusion = GaussianMixtureDiffusion(law, num_steps=100)
    tilted, log_z = law.tilt_quadratic([1.0, 0.0], 1.0, 1.0)
    settings = FKSteering(64, ess_threshold=threshold, scale=1.0, interval=10, start=0.3, stop=1.0)
    cloud = run(diffusion, QuadraticReward([1.0, 0.0]), 64, settings)
    mean, variance = tilted.mean()[0].item(), tilted.variance()[0].item()
    assert_moments(cloud, mean, variance, log_z, bias=(0.004, 0.006, 0.009))


def test_a_deterministic_last_step_is_steered_too() -> None:
    diffusion = GaussianMixtureDiffusion(BIMODAL, num_steps=20, variance="posterior")
    assert 19 not in diffusion.stochastic_steps
    x, mass = quadrature(diffusion)
    w = mass * x.exp()
    log_z, w = w.sum().log().item(), w / w.sum()
    mean, second = (w @ x).item(), (w @ x.square()).item()
    settings = FKSteering(64, 1.0, ess_threshold=1.0, interval=4, start=0.4, stop=1.0)
    cloud = run(diffusion, LinearReward([1.0]), 256, settings)
    assert_moments(cloud, mean, second - mean**2, log_z, bias=(0, 0, 0))


CHAIN = masked_chain(length=3, num_steps=4)
REWARDS = randn((64,), stream(0, "rewards")).double()


def sequence_masses(chain: EnumerableChain, cloud: Cloud[Particles]) -> Tensor:
    """The weight of each clean sequence in each system, (G, V^L)."""
    cells = number(cloud.x.x, len(chain.alphabet)).reshape(cloud.weights.shape)
    masses = torch.zeros(len(cells), len(chain.sequences()), dtype=torch.float64)
    return masses.scatter_add(1, cells, cloud.weights)


@pytest.mark.parametrize(
    ("scale", "potential", "scheme", "threshold"),
    [(0.7, "difference", scheme, 1.0) for scheme in UNBIASED]
    + [(0.7, potential, "systematic", 1.0) for potential in POTENTIALS]
    + [(1.5, "difference", "systematic", 0.5), (1.5, "max", "systematic", 0.0)],
)
def test_total_variation_is_within_twice_that_of_exact_samples(
    scale, potential, scheme, threshold
) -> None:
    """4,096 particles in one system, with their weights; twice is for these moderate tilts.

    Measured over eight seeds, the ratio is 1.0 to 1.7. (Resampled at every state, it passes 2 at
    scale 1.5: the clean prediction of masked states is too coarse to be worth that.)
    """
    n = 4096
    with torch.no_grad():
        target = tilt(CHAIN.log_law(), REWARDS, scale)[0].exp()
    drawn = torch.multinomial(target.expand(20, -1), n, True, generator=stream(0, "exact"))
    counts = torch.nn.functional.one_hot(drawn, 64).sum(1)
    exact = total_variation(counts / n, target).mean()
    settings = FKSteering(n, scale, potential, scheme, threshold, interval=1, start=0.5, stop=1.0)
    cloud = run(CHAIN, TableReward(REWARDS), 1, settings)
    assert (cloud.ancestors != torch.arange(n)).any() == (threshold > 0)
    assert total_variation(sequence_masses(CHAIN, cloud)[0], target) < 2 * exact


@pytest.mark.parametrize(
    ("potential", "scheme", "threshold"),
    [("difference", scheme, 1.0) for scheme in UNBIASED]
    + [(potential, "systematic", 0.5) for potential in POTENTIALS],
)
def test_four_particles_estimate_the_evidence_without_bias(potential, scheme, threshold) -> None:
    systems = 8192
    with torch.no_grad():
        target, log_z = tilt(CHAIN.log_law(), REWARDS, 1.0)
    settings = FKSteering(4, 1.0, potential, scheme, threshold, interval=1, start=0.0, stop=1.0)
    cloud = run(CHAIN, TableReward(REWARDS), systems, settings)
    assert cloud.log_evidence is not None
    z = (cloud.log_evidence - log_z).exp()
    assert abs(z.mean() - 1) < 4 * z.std() / math.sqrt(systems)
    assert z.std() / math.sqrt(systems) < 0.03
    # Weighted by its evidence, even a system of four draws from the target on average.
    pooled = z @ sequence_masses(CHAIN, cloud) / systems
    error = (z[:, None] * sequence_masses(CHAIN, cloud)).std(0) / math.sqrt(systems)
    assert ((pooled - target.exp()).abs() < 4 * error + 1e-3).all()


def test_the_winner_is_chosen_by_its_weight_among_siblings() -> None:
    """SVDD: after each selection all particles of a system have one parent."""
    settings = FKSteering(8, 1.0, "difference", "winner", 1.0, interval=1, start=0.0, stop=1.0)
    cloud = run(GaussianMixtureDiffusion(BIMODAL, 10), LinearReward([1.0]), 50, settings)
    assert cloud.log_evidence is None
    assert (cloud.ancestors == cloud.ancestors[..., :1]).all()
    assert (cloud.origins() == cloud.origins()[:, :1]).all()


def test_siblings_part_at_once_when_the_step_is_stochastic() -> None:
    settings = FKSteering(8, 1.0, "difference", "winner", 1.0, interval=1, start=0.0, stop=1.0)
    for eta, different in ((1.0, 8), (0.0, 1)):
        diffusion = GaussianMixtureDiffusion(BIMODAL, 10, eta=eta)
        cloud = run(diffusion, LinearReward([1.0]), 20, settings)
        assert all(len(system.unique()) == different for system in cloud.x.x.reshape(20, 8))
