"""The matching methods where the optimum is known (methods-training 6.1, models B and C).

RWR claims the tilted law and must reach it. DiffusionNFT has a formula for its first step, AWM a
direction. The preference methods are not calibrated to beta: where they are judged by more than
direction, it is by the optimum of their own objective.
"""

import math

import pytest
import torch
from linear_gaussian import STD, LinearGaussian, quantiles
from torch import Tensor

from diffreward.algorithm import Algorithm, Batch
from diffreward.algorithms.awm import AWM
from diffreward.algorithms.crd import CRD
from diffreward.algorithms.diffusion_dpo import DiffusionDPO
from diffreward.algorithms.diffusion_kto import DiffusionKTO
from diffreward.algorithms.inversion_dpo import InversionDPO
from diffreward.algorithms.ipo import IPO
from diffreward.algorithms.nft import DiffusionNFT
from diffreward.algorithms.rwr import RWR
from diffreward.algorithms.seppo import SePPO
from diffreward.diffusion import draw
from diffreward.feedback import Pairs
from diffreward.matching import noise, noised_entries
from diffreward.objectives import preference_loss
from diffreward.pipelines.gaussian_mixture import (
    GaussianMixture,
    GaussianMixtureDiffusion,
    LinearReward,
    MixtureDenoiser,
)
from diffreward.policy import Full, Policy
from diffreward.preferences import Encoded
from diffreward.random import stream
from diffreward.reward import RewardFunction
from diffreward.samples import Samples, vectors

LEVELS = 6
MIXTURE = GaussianMixture([1.0, 2.0], [[-1.0, 0.0], [1.0, 0.5]], 0.5)
UP = LinearReward([1.0, 0.0])


def data(clean: Tensor, scores: Tensor | None = None) -> Encoded:
    """Samples of one prompt; their first coordinate is the score if none is given."""
    scores = clean[:, 0] if scores is None else scores
    return Encoded(("",), clean, scores, torch.zeros(len(clean), dtype=torch.long))


def batch_of(encoded: Encoded) -> Batch:
    return Batch(encoded.prompts, len(encoded), seed=0, update=1, data=encoded)


def accumulate(policy: Policy, algorithm: Algorithm, batch: Batch, reward: RewardFunction) -> float:
    """One round with its gradient left in the parameters; the loss."""
    generator = algorithm.losses(policy, algorithm.collect(policy, reward, batch), 0)
    while True:
        try:
            next(generator).backward()
        except StopIteration as end:
            return float(end.value["loss"])


def gradient(policy: Policy) -> Tensor:
    parameters = policy.parameters().values()
    return torch.cat(
        [(p.new_zeros(p.shape) if p.grad is None else p.grad).flatten() for p in parameters]
    )


def first_gradient(algorithm: Algorithm) -> tuple[LinearGaussian, Tensor]:
    """Of the offsets, from a lattice of points of the reference's own law."""
    world = LinearGaussian(LEVELS, lattice=True)
    policy = Full().attach(world, rows=4096)
    accumulate(policy, algorithm, batch_of(data(quantiles(4096))), UP)
    return world, gradient(policy)


def after_newton_step(algorithm: Algorithm, curvature: float | Tensor) -> LinearGaussian:
    """The minimum of a loss that is quadratic in the offsets."""
    world, slope = first_gradient(algorithm)
    with torch.no_grad():
        world.network.offset.copy_(-slope / curvature)
    return world


def test_rwr_reaches_the_tilted_law_at_every_level() -> None:
    # exp(x / beta) shifts N(0, s^2) by s^2 / beta = 0.98. The weights of a prompt sum to 1 and the
    # levels share the loss, so its curvature in each offset is 2 / K. The lattice's outermost
    # points cut 1 % off the tilt; a wrong weight would be off by tens of percent.
    world = after_newton_step(RWR(beta=0.5, draws=LEVELS), 2 / LEVELS)
    torch.testing.assert_close(
        world.shifts(), torch.full((LEVELS,), 0.98).double(), atol=0, rtol=0.015
    )


def test_exponential_weights_have_the_same_optimum() -> None:
    world = after_newton_step(
        RWR(beta=0.5, weighting="exponential", draws=LEVELS), 2 / LEVELS * math.exp(0.98)
    )
    torch.testing.assert_close(
        world.shifts(), torch.full((LEVELS,), 0.98).double(), atol=0, rtol=0.03
    )


def test_samples_of_rwr_have_the_mean_of_the_shifted_chain() -> None:
    world = after_newton_step(RWR(beta=0.5, draws=LEVELS), 2 / LEVELS)
    samples = draw(world, world.encode([""] * 20000), stream(1), stream(2), rows=20000)
    # The prior stays that of the reference, and is all that the chain has of it: its mean is short
    # of sqrt(a_0) delta, and each step keeps a share of what is missing.
    missing, at = -float(world.shares[-1].sqrt()) * 0.98, world.shares.flip(0)
    for a, after in zip(at, torch.cat([at[1:], torch.ones(1)]), strict=True):
        v, v_after = a * STD**2 + 1 - a, after * STD**2 + 1 - after
        # The exact reverse step regresses x_{k+1} on x_k with their covariance sqrt(after / a) ...
        missing *= float((a / after).sqrt() * v_after / v)
    # 20000 samples of deviation 0.7: a standard error of 0.005. The lattice's 1 % comes on top.
    assert samples.mean() == pytest.approx(0.98 + missing, abs=0.03)


def test_rwr_learns_the_field_of_the_tilted_mixture() -> None:
    # From samples of the reference, so that there is one optimum: MIXTURE tilted by exp(x_1 / 2).
    world, steps = GaussianMixtureDiffusion(MIXTURE, 20), 50
    policy = Full().attach(world, rows=4096)
    optimizer = torch.optim.Adam(policy.parameters().values(), lr=3e-3)
    algorithm = RWR(beta=2.0, draws=2)
    experience = algorithm.collect(policy, UP, batch_of(data(MIXTURE.sample(512, stream(6)))))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        optimizer.zero_grad()
        for loss in algorithm.losses(policy, experience, step):
            loss.backward()
        optimizer.step()
    tilted, _ = MIXTURE.tilt_linear([0.5, 0.0])
    before, after = field_errors(world, tilted)
    assert after < 0.25 * before, (before, after)


def field_errors(world: GaussianMixtureDiffusion, law: GaussianMixture) -> tuple[float, float]:
    """Mean squared distance of reference and world to the exact network of a law, on its points."""
    reference, exact = MixtureDenoiser(world.law), MixtureDenoiser(law)
    distances = torch.zeros(2)
    for t in (100, 300, 500, 700):
        times = torch.full((2000,), t)
        noisy, _ = world.corrupt(law.sample(2000, stream(3)), times / 999, stream(4))
        with torch.no_grad():
            truth = exact(noisy, times)
            for i, network in enumerate((reference, world.network)):
                distances[i] += (network(noisy, times) - truth).square().mean()
    return float(distances[0]), float(distances[1])


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_the_first_step_of_nft_is_twice_the_covariance_over_beta(beta: float) -> None:
    # r = 1/2 + (x / s) / 10, so that Cov(r, x) = s / 10: delta = 0.14 for beta = 1 (the table's
    # .139 / .138 / .146). The clean prediction moves by c b, c^2 = (1 - a) / a.
    algorithm = DiffusionNFT(beta=beta, adaptive=False, draws=LEVELS)
    shares = LinearGaussian(LEVELS).shares
    curvature = 5 / LEVELS * 2 * beta * (1 - shares) / shares
    world = after_newton_step(algorithm, curvature)
    torch.testing.assert_close(
        world.shifts(), torch.full((LEVELS,), 0.2 * STD / beta).double(), atol=0, rtol=0.01
    )


def test_the_first_gradients_of_rwr_awm_and_nft_are_parallel() -> None:
    world, rwr = first_gradient(RWR(beta=1.0, draws=LEVELS))
    plain = AWM(power=1, time_weighted=False, average_weight=0, draws=LEVELS)
    _, awm = first_gradient(plain)
    _, nft = first_gradient(DiffusionNFT(adaptive=False, draws=LEVELS))
    # NFT measures errors of the clean prediction, the others errors of the noise.
    nft = nft * world.shares / (1 - world.shares)
    for one, other in ((rwr, awm), (awm, nft), (nft, rwr)):
        assert torch.cosine_similarity(one, other, 0) > 1 - 1e-5


def test_dpo_with_bradley_terry_labels_has_the_optimum_of_its_own_objective() -> None:
    # Winner and loser share noise, so a difference of errors is -2 b c (x_w - x_l), and with
    # c = sqrt(a (1 - a)) / v the margin is beta kappa delta (x_w - x_l), kappa = c^2. The labels'
    # margin is 2 (x_w - x_l), so delta = 2 / (beta kappa): nothing like the tilt's 0.98 (table of
    # methods-training 6.1: far above it at noisy levels, far below at clean ones).
    world, beta = LinearGaussian(LEVELS), 10.0
    policy = Full().attach(world, rows=4096)
    points, count = quantiles(24), 24
    experience = DiffusionDPO().collect(policy, UP, batch_of(data(points)))
    noised = noise(policy, experience, LEVELS, shared=True)
    first, second = torch.triu_indices(count, count, 1)
    margin = 2 * (points[first] - points[second])[:, 0].double()
    pairs = Pairs(
        torch.cat([first, second]),
        torch.cat([second, first]),
        torch.cat([margin, -margin]),
        torch.cat([margin, -margin]).sigmoid() / len(margin),
    )

    def errors() -> Tensor:
        entries = noised_entries(policy, noised)
        everyone = torch.arange(count)
        columns = [entries.read(entries.predict(everyone, s), everyone, s) for s in range(LEVELS)]
        return torch.stack(columns, 1)

    before = errors().detach()
    # Each level is its own problem, and their curvatures differ by orders: rescale.
    a = world.shares
    kappa = a * (1 - a) / (a * STD**2 + 1 - a).square()
    scaled = torch.zeros(LEVELS, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [scaled], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        world.network.offset.grad = None
        with torch.no_grad():
            world.network.offset.copy_(scaled / kappa.sqrt())
        loss = preference_loss(before - errors(), pairs, beta / 2)
        loss.backward()
        scaled.grad = world.network.offset.grad / kappa.sqrt()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(world.shifts(), 2 / (beta * kappa), atol=0, rtol=1e-4)


def correction(policy: Policy) -> list[Tensor]:
    """The last layer of a mixture's network: what sets its distance from the reference."""
    last = policy.diffusion.network.correction[-1]
    return [last.weight, last.bias]


def inverted_loss(measure: str, moved: float, eta: float = 1.0) -> tuple[float, Tensor]:
    """The loss of two judged samples, and its gradient, after a move of the network."""
    torch.manual_seed(0)
    policy = Full().attach(GaussianMixtureDiffusion(MIXTURE, 10, eta=eta), rows=64)
    for tensor in correction(policy):
        tensor.data = moved * torch.randn(tensor.shape, generator=stream(7, *tensor.shape))
    points = data(torch.tensor([[1.4, 0.2], [-0.9, 0.6]]))
    algorithm = InversionDPO(beta=100.0, measure=measure, iterations=3)  # type: ignore[arg-type]
    loss = accumulate(policy, algorithm, batch_of(points), UP)
    return loss, gradient(policy)


@pytest.mark.parametrize("measure", ["released", "derived"])
def test_inversion_dpo_by_distance_is_even_and_has_no_gradient_at_the_reference(
    measure: str,
) -> None:
    there, gradient_there = inverted_loss(measure, 0.05)
    opposite, gradient_opposite = inverted_loss(measure, -0.05)
    assert there == pytest.approx(opposite, rel=1e-5) and abs(there - math.log(2)) > 0.01
    assert gradient_there.any() and gradient_opposite.any()
    at_reference, zero = inverted_loss(measure, 0.0)
    assert at_reference == pytest.approx(math.log(2)) and not zero.any()


def test_the_released_sign_is_the_opposite_of_the_derived_one() -> None:
    released, _ = inverted_loss("released", 0.05)
    derived, _ = inverted_loss("derived", 0.05)
    # sigmoid(z) + sigmoid(-z) = 1
    assert math.exp(-released) + math.exp(-derived) == pytest.approx(1.0)


@pytest.mark.parametrize("offset", [0.1, -3.0])
def test_inversion_dpo_by_distance_does_not_see_a_uniform_shift(offset: float) -> None:
    world = LinearGaussian(LEVELS)
    policy = Full().attach(world, rows=64)
    with torch.no_grad():
        world.network.offset.fill_(offset)
    points = batch_of(data(torch.tensor([[1.4], [-0.9]])))
    loss = accumulate(policy, InversionDPO(measure="released"), points, UP)
    assert loss == pytest.approx(math.log(2))


def test_inversion_dpo_by_likelihood_has_a_gradient_towards_the_winner() -> None:
    loss, slope = inverted_loss("likelihood", 0.0)
    assert loss == pytest.approx(math.log(2)) and slope.norm() > 1e-3
    policy = Full().attach(LinearGaussian(LEVELS), rows=64)
    points = batch_of(data(torch.tensor([[1.4], [-0.9]])))
    accumulate(policy, InversionDPO(measure="likelihood", iterations=5), points, UP)
    # Descending raises the shift of the law, hence lowers the offsets.
    assert bool((gradient(policy) > 0).all())


def test_inversion_dpo_by_denoising_has_a_gradient_towards_the_winner() -> None:
    loss, slope = inverted_loss("denoising", 0.0, eta=0.0)
    assert loss == pytest.approx(math.log(2)) and slope.norm() > 1e-3
    policy = Full().attach(LinearGaussian(LEVELS), rows=64)
    accumulate(policy, InversionDPO(), batch_of(data(torch.tensor([[1.4], [-0.9]]))), UP)
    # Descending raises the shift of the law, hence lowers the offsets.
    assert bool((gradient(policy) > 0).all())


@pytest.mark.parametrize("measure", ["released", "denoising"])
def test_the_distance_is_that_of_the_noise_over_twice_alpha_bar(measure: str) -> None:
    policy = Full().attach(GaussianMixtureDiffusion(MIXTURE, 10), rows=64)
    world = policy.diffusion
    for tensor in correction(policy):
        tensor.data = 0.05 * torch.randn(tensor.shape, generator=stream(7, *tensor.shape))
    points = data(torch.tensor([[1.4, 0.2], [-0.9, 0.6]]))
    algorithm = InversionDPO(beta=100.0, reduction="mean", measure=measure)  # type: ignore[arg-type]
    experience = algorithm.collect(policy, UP, batch_of(points))
    total = torch.zeros(2)
    with torch.no_grad():
        for k in range(10):
            x, level = experience.states[:, k], world.levels[k]
            ours = (x - level.alpha * world.step(x, k, experience.condition).clean) / level.sigma
            with policy.reference():
                theirs = world.step(x, k, experience.condition).clean
            theirs = (x - level.alpha * theirs) / level.sigma
            noise = (x - level.alpha * experience.states[:, -1]) / level.sigma
            apart = (ours - theirs).square()
            if measure == "denoising":
                apart = (theirs - noise).square() - (ours - noise).square()
            total += apart.mean(1) / (2 * level.alpha**2) / 10
    winner, loser = int(experience.pairs.winner), int(experience.pairs.loser)
    expected = -torch.nn.functional.logsigmoid(50 * (total[winner] - total[loser]))
    found = list(algorithm.losses(policy, experience, 0))
    assert len(found) == 10  # one term per step: nothing keeps the whole path
    assert accumulate(policy, algorithm, batch_of(points), UP) == pytest.approx(
        float(expected), rel=1e-4
    )


ALL = [
    RWR(),
    RWR(weighting="exponential", sampler="reference", times="logit_normal"),
    DiffusionDPO(beta=10),
    DiffusionDPO(beta=10, pairing="extremes", refresh_every=2, time_weight="flow"),
    DiffusionKTO(beta=5),
    DiffusionKTO(beta=5, offset="balanced", utility="loss_averse", refresh_every=3),
    DiffusionKTO(beta=5, offset="mismatched", utility="risk_seeking"),
    SePPO(beta=10, keep_every=2, kept=2),
    SePPO(beta=10, flips=False),
    IPO(beta=10, round_updates=3),
    IPO(beta=5, objective="kto"),
    DiffusionNFT(draws=3),
    DiffusionNFT(draws=3, adaptive=False, inner_steps=2),
    AWM(draws=3),
    AWM(draws=3, inner_steps=2, average_weight=0),
    CRD(draws=3),
    InversionDPO(beta=50),
    InversionDPO(beta=50, measure="likelihood"),
    InversionDPO(beta=50, pairing="extremes", iterations=3),
]


def names(algorithm: Algorithm) -> str:
    return type(algorithm).__name__


class Forgetful:
    """The first coordinate, but no score for one sample in eight."""

    def __call__(self, samples: Samples, prompts: list[str]) -> Tensor:
        scores = vectors(samples)[:, 0].clone()
        scores[::8] = torch.nan
        return scores


@pytest.mark.parametrize("algorithm", ALL, ids=names)
def test_every_method_raises_the_reward_from_its_own_samples(algorithm: Algorithm) -> None:
    world = GaussianMixtureDiffusion(MIXTURE, 10)
    policy = Full().attach(world, rows=512)
    optimizer = torch.optim.Adam(policy.parameters().values(), lr=2e-3)
    for update in range(1, 9):
        experience = algorithm.collect(policy, Forgetful(), Batch([""] * 4, 16, 0, update))
        for inner_step in range(algorithm.inner_steps):
            optimizer.zero_grad()
            for loss in algorithm.losses(policy, experience, inner_step):
                loss.backward()
            optimizer.step()
    condition = world.encode([""] * 2000)
    after = draw(world, condition, stream(1), stream(2), rows=2000)[:, 0]
    with policy.reference():
        before = draw(world, condition, stream(1), stream(2), rows=2000)[:, 0]
    assert bool(after.isfinite().all())
    # The same noise for both, so that the difference is that of the networks.
    assert (after - before).mean() > 0.02, (before.mean(), after.mean())


@pytest.mark.parametrize("algorithm", [a for a in ALL if not isinstance(a, IPO)], ids=names)
def test_a_sample_without_a_score_contributes_nothing(algorithm: Algorithm) -> None:
    clean = MIXTURE.sample(12, stream(5))
    scores = clean[:, 0].clone()
    scores[[3, 7]] = torch.nan
    found = []
    for elsewhere in (0.0, 100.0):
        moved = clean.clone()
        moved[[3, 7]] += elsewhere
        groups = torch.arange(3).repeat_interleave(4)
        encoded = Encoded(("a", "b", "c"), moved, scores, groups)
        policy = Full().attach(GaussianMixtureDiffusion(MIXTURE, 5), rows=5)
        with torch.no_grad():
            for tensor in correction(policy):
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=stream(7, *tensor.shape)))
        accumulate(policy, algorithm, Batch(("a", "b", "c"), 4, 0, 1, 0, encoded), UP)
        found.append(gradient(policy))
    assert found[0].any() and bool(found[0].isfinite().all())
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)


@pytest.mark.parametrize("algorithm", ALL, ids=names)
def test_equal_scores_teach_nothing_but_to_fit_the_samples(algorithm: Algorithm) -> None:
    policy = Full().attach(GaussianMixtureDiffusion(MIXTURE, 5), rows=64)
    batch = Batch(["a", "b"], 4, seed=0, update=1)
    loss = accumulate(policy, algorithm, batch, lambda samples, prompts: torch.ones(8))
    found = gradient(policy)
    assert math.isfinite(loss) and bool(found.isfinite().all())
    # RWR fits all samples alike, and SePPO has its answers to compare with.
    assert bool(found.any()) == isinstance(algorithm, RWR | SePPO)
