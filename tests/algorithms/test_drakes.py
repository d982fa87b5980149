"""DRAKES against its released structure, against sums over all states, and against DRaFT."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from linear_gaussian import LinearGaussian
from sequence_world import Rows, table_world
from torch import Generator, Tensor, nn

from diffreward.algorithm import Algorithm, Batch
from diffreward.algorithms.draft import DRaFT
from diffreward.algorithms.drakes import DRAKES
from diffreward.alphabets import DNA
from diffreward.enumeration import sequences
from diffreward.penalty import Penalty
from diffreward.pipelines.enumerable import TableReward
from diffreward.pipelines.gaussian_mixture import QuadraticReward
from diffreward.pipelines.masked_diffusion import MaskedDiffusion
from diffreward.policy import Full, Policy
from diffreward.random import rand, stream
from diffreward.reward import RewardFunction
from diffreward.samples import Samples, tokens
from diffreward.sequences.denoisers import ConvDenoiser
from diffreward.sequences.pipeline import MaskedDiffusionPipeline
from diffreward.sequences.scheduler import MaskedDiffusionScheduler

LENGTH, STEPS, SOFT = 24, 12, 5


@pytest.fixture(scope="module")
def released() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        import released_drakes

        return released_drakes


def shift(policy: Policy, scale: float = 0.1) -> None:
    """Take the policy away from its reference."""
    with torch.no_grad():
        for i, parameter in enumerate(policy.parameters().values()):
            parameter += scale * torch.randn(parameter.shape, generator=stream(i)).to(parameter)


def update(
    policy: Policy, algorithm: Algorithm, reward: RewardFunction, batch: Batch
) -> tuple[dict[str, float], Tensor]:
    """Metrics and gradient of the first inner step."""
    policy.diffusion.network.zero_grad()
    losses = algorithm.losses(policy, algorithm.collect(policy, reward, batch), 0)
    while True:
        try:
            next(losses).backward()
        except StopIteration as end:
            grads = [p.grad for p in policy.parameters().values() if p.grad is not None]
            return dict(end.value), torch.cat([g.flatten() for g in grads])


def both(policy: Policy) -> tuple[nn.Module, nn.Module]:
    """The network in training and the reference's."""
    with policy.reference():
        reference = policy.diffusion.network
    return policy.diffusion.network, reference


def dna_policy(**settings: object) -> Policy:
    """A small network that is far from its reference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = ConvDenoiser(hidden=16, stacks=1, dilations=(1, 4))
    scheduler = MaskedDiffusionScheduler(epsilon=1e-3)
    pipe = MaskedDiffusionPipeline(denoiser, scheduler, DNA, LENGTH)
    policy = Full().attach(MaskedDiffusion(pipe, STEPS, **settings), rows=4)
    shift(policy)
    return policy


def neighbours(samples: Samples, prompts: Sequence[str]) -> Tensor:
    """A smooth score of the symbols and of those beside them."""
    return neighbours_of(tokens(samples))


def neighbours_of(weights: Tensor) -> Tensor:
    table = torch.randn(4, 4, generator=stream(7))
    return torch.einsum("blv,vw,blw->b", weights[:, 1:], table, weights[:, :-1]).tanh()


def gumbels(noise: list[Generator]) -> Iterator[Tensor]:
    while True:
        yield -(-(1 - rand((len(noise), LENGTH, 5), noise)).log()).log().float()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_gradient_is_that_of_the_released_structure(
    released: ModuleType, temperature: float, checkpointing: bool
) -> None:
    policy = dna_policy(relaxation="released", final_time=1e-5, gumbel_temperature=temperature)
    batch, alpha = Batch([""], 4, seed=0, update=1), 30.0
    algorithm = DRAKES(SOFT, Penalty("kl", alpha, "sum"), 0, True, checkpointing)
    metrics, found = update(policy, algorithm, neighbours, batch)

    network, reference = both(policy)
    reference.requires_grad_(True)
    unit = float(policy.diffusion.masked[0] - policy.diffusion.masked[1])
    theirs = released.Released(
        network, reference, neighbours_of, STEPS, SOFT, alpha * unit, temperature
    )
    start = F.one_hot(torch.full((4, LENGTH), 4), 5).float()
    network.zero_grad()
    loss = theirs.loss(start, gumbels(batch.streams("steps")))
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert metrics["loss"] + alpha * metrics["penalty"] == pytest.approx(loss.item(), rel=1e-5)
    assert alpha * metrics["penalty"] > 0.1, "the regulariser is too small to be compared"
    assert float((found - expected).norm() / expected.norm()) < 1e-5


SYMBOLS, SHORT = 3, 2


def table_policy(**settings: object) -> Policy:
    """The exact model of a law on a few short sequences, and a policy that is another."""
    policy = Full().attach(table_world(None, SYMBOLS, SHORT, num_steps=4, **settings), 4096)
    shift(policy, 0.7)
    return policy


def exact_kl(policy: Policy, through_states: bool = True) -> Tensor:
    """KL(paths || reference's paths) by a sum over all states, with its graph, ().

    Args:
        policy: of `table_policy`.
        through_states: whether the law of the states depends on the policy in the graph.
    """
    masked, states = policy.diffusion.masked, sequences(SYMBOLS + 1, SHORT)
    hidden = states == SYMBOLS
    log_p, log_q = (network.table.double().log_softmax(-1) for network in both(policy))
    apart = (hidden * (log_p.exp() * (log_p - log_q)).sum(-1)).sum(-1)
    at = torch.zeros(len(states), dtype=torch.float64)
    at[-1] = 1
    total = torch.zeros((), dtype=torch.float64)
    for k in range(policy.diffusion.num_steps):
        stays = masked[k + 1] / masked[k]
        total = total + (1 - stays) * (at * apart).sum()
        revealed = torch.cat([(1 - stays) * log_p.exp(), stays.expand(*hidden.shape, 1)], -1)
        moves = torch.where(hidden[..., None], revealed, F.one_hot(states, SYMBOLS + 1))
        at = torch.einsum("s,sv,sw->vw", at, moves[:, 0], moves[:, 1]).flatten()
        at = at if through_states else at.detach()
    return total


NOTHING = TableReward([0.0] * SYMBOLS**SHORT)
PATH_KL = Penalty("kl", 1.0, "sum")


def draws_of(algorithm: DRAKES) -> tuple[Tensor, Tensor]:
    """The penalty, (16,), and its gradient, (16, D), each a mean of 500 paths."""
    policy, found = table_policy(), []
    for seed in range(16):
        metrics, gradient = update(policy, algorithm, NOTHING, Batch([""], 500, seed, 1))
        found.append((torch.tensor(metrics["penalty"]), gradient))
    penalties, gradients = zip(*found, strict=True)
    return torch.stack(penalties), torch.stack(gradients)


@pytest.mark.parametrize("last_steps", [1, 3, None])
def test_the_penalty_is_the_kl_of_paths(last_steps: int | None) -> None:
    penalties, _ = draws_of(DRAKES(last_steps, PATH_KL))
    error = penalties.std() / len(penalties) ** 0.5
    expected = exact_kl(table_policy()).item()
    assert expected > 20 * error
    assert abs(penalties.mean() - expected) < 3 * error


def test_on_states_without_a_graph_its_gradient_is_that_of_each_step_alone() -> None:
    policy = table_policy()
    local, whole = (
        torch.autograd.grad(exact_kl(policy, through), policy.diffusion.network.table)[0]
        for through in (False, True)
    )
    _, gradients = draws_of(DRAKES(1, PATH_KL))
    # The squared distance of a mean from its limit, in sums of squared standard errors, is 1 in the
    # mean. Nearly all of it is one number, how many positions are masked: 8 is not met by chance.
    noise = (gradients.var(0) / len(gradients)).sum()
    distances = [(gradients.mean(0) - g.flatten()).square().sum() / noise for g in (local, whole)]
    assert distances[0] < 8 < distances[1], distances


REWARD = TableReward(torch.linspace(-1, 1, SYMBOLS**SHORT).square())
ONE = Batch([""], 16, seed=0, update=1)


@pytest.mark.parametrize("relaxation", ["straight_through", "soft", "released"])
def test_checkpointing_changes_no_gradient(relaxation: str) -> None:
    policy = table_policy(relaxation=relaxation)
    (kept, a), (repeated, b) = (
        update(policy, DRAKES(3, PATH_KL, checkpointing=on), REWARD, ONE) for on in (False, True)
    )
    assert kept == repeated
    torch.testing.assert_close(a, b)


def test_the_weight_of_the_penalty_rises_over_the_first_rounds() -> None:
    policy, quarter = table_policy(), replace(PATH_KL, weight=0.25)
    for number, expected in ((1, quarter), (4, PATH_KL), (9, PATH_KL)):
        batch = replace(ONE, update=number)
        _, found = update(policy, DRAKES(2, PATH_KL, warmup=4), REWARD, batch)
        torch.testing.assert_close(found, update(policy, DRAKES(2, expected), REWARD, batch)[1])
    first = replace(ONE, update=0)
    _, free = update(policy, DRAKES(2, replace(PATH_KL, weight=0.0)), REWARD, first)
    _, held = update(policy, DRAKES(2, PATH_KL), REWARD, first)
    assert not torch.allclose(free, held)


def test_the_reference_sees_what_the_penalty_needs_and_no_more() -> None:
    for as_released, steps in ((True, 3), (False, 4)):
        policy = table_policy(relaxation="released")
        seen = Rows(both(policy)[1])
        update(policy, DRAKES(3, PATH_KL, as_released=as_released), REWARD, ONE)
        assert seen.count == steps * len(ONE.groups)


def test_the_steps_before_have_no_graph() -> None:
    policy = table_policy()
    past = DRAKES(3).collect(policy, REWARD, ONE).past
    assert past.steps == (0,) and past.states.dtype == torch.int64
    assert not (past.log_probs.requires_grad or past.states.requires_grad)


def gaussian_policy() -> Policy:
    policy = Full().attach(LinearGaussian(), 64)
    shift(policy, 0.3)
    return policy


def test_on_a_continuous_family_it_is_draft_with_the_kl() -> None:
    policy, reward, free = gaussian_policy(), QuadraticReward([1.0]), replace(PATH_KL, weight=0.0)
    ours, whole = update(policy, DRAKES(None, PATH_KL), reward, ONE)
    theirs, draft = update(policy, DRaFT(penalty=PATH_KL), reward, ONE)
    assert ours == theirs
    assert torch.equal(whole, draft)
    # In this world the KL of a step is the same at all states: truncation takes none of it away.
    _, truncated = update(policy, DRAKES(2, PATH_KL), reward, ONE)
    rewarded = {last: update(policy, DRaFT(last, penalty=free), reward, ONE)[1] for last in (2, 6)}
    torch.testing.assert_close(truncated - rewarded[2], draft - rewarded[6])


def test_training_raises_the_reward_and_the_penalty_holds_it() -> None:
    found = {}
    for weight in (0.0, 0.3):
        policy = Full().attach(table_world(None, SYMBOLS, SHORT, num_steps=4), 4096)
        optimizer = torch.optim.Adam(policy.parameters().values(), lr=0.1)
        for number in range(1, 31):
            batch = Batch([""], 64, seed=0, update=number)
            metrics, _ = update(policy, DRAKES(3, replace(PATH_KL, weight=weight)), REWARD, batch)
            optimizer.step()
        found[weight] = -metrics["loss"], exact_kl(policy).item()
    base, _ = update(table_policy(), DRAKES(3), REWARD, ONE)
    assert found[0.0][0] > found[0.3][0] > -base["loss"] + 0.1
    assert found[0.3][1] < 0.5 * found[0.0][1]


def test_what_has_no_meaning_is_refused() -> None:
    adapted = {"warmup": 2, "penalty": replace(PATH_KL, budget=1.0)}
    for wrong in ({"last_steps": 0}, {"warmup": -1}, {"penalty": Penalty()}, adapted):
        with pytest.raises(ValueError, match=r"last_steps|sum|budget"):
            DRAKES(**wrong)
    with pytest.raises(TypeError, match="masked diffusion"):
        update(
            gaussian_policy(), DRAKES(None, PATH_KL, as_released=True), QuadraticReward([1.0]), ONE
        )
