"""Value functions that are learned, against those that are known by quadrature."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from steering.mixture_pipeline import (
    BIMODAL,
    SCHEDULERS,
    STEPS,
    Chain,
    decode,
    levels,
    mixture_pipeline,
    run,
)
from tiny import stable_diffusion
from torch import Tensor, nn

from diffreward.checks import TrainingError
from diffreward.pipelines.gaussian_mixture import LinearReward, QuadraticReward
from diffreward.reward import RewardFunction
from diffreward.samples import Samples, images, vectors
from diffreward.steering import DAS, SVDD, steer
from diffreward.steering.drop_in.session import State
from diffreward.steering.value.fitting import fit_soft_value
from diffreward.steering.value.latent_value import LatentValue
from diffreward.steering.value.recording import RecordedStates, record_states
from diffreward.steering.value.training import ValueFunction, train_value

REWARD = QuadraticReward([1.5], 2.0)
SCALES = {"ddim": 1.0, "flow": 2.0}
"""At which E[reward | x] is a bad value."""


def record(
    scheduler: str = "ddim", reward: RewardFunction = REWARD, calls: int = 2, batch: int = 4
) -> RecordedStates:
    pipe = mixture_pipeline(BIMODAL, SCHEDULERS[scheduler])
    return record_states(pipe, reward, ["up", "down"], calls=calls, batch=batch, decoder=decode)


def small(embedding: object = None, embedded: int = 0) -> LatentValue:
    return LatentValue(1, 32, embedding, embedded)


@pytest.fixture(scope="module", params=SCALES)
def trained(request: pytest.FixtureRequest) -> tuple[str, ValueFunction]:
    """A scheduler, and a value that is learned from 4,096 samples of its chain."""
    value = train_value(
        mixture_pipeline(BIMODAL, SCHEDULERS[request.param]),
        REWARD,
        [""],
        small(),
        SCALES[request.param],
        calls=8,
        batch=512,
        updates=800,
        rows=128,
        learning_rate=3e-3,
        decoder=decode,
        call={"num_inference_steps": STEPS},
    )
    return request.param, value


def judged(value: ValueFunction, chain: Chain, k: int) -> Tensor:
    """What a value says of the nodes of state k, (n,) float64."""
    alpha, sigma = chain.route[k]
    ratio = sigma / alpha if alpha > 0 else math.inf
    x, clean = (v.float()[:, None, None, None] for v in (chain.nodes[k], chain.clean(k)))
    with torch.no_grad():
        return value(State(x, (clean,), None, k, STEPS, ratio), [""] * len(x)).double()


def error(value: Tensor, exact: Tensor, mass: Tensor) -> float:
    """Root mean square, (n,) -> (), but for a constant, which no choice depends on."""
    away = value - exact
    return (mass @ (away - mass @ away).square()).sqrt().item()


def test_the_value_of_indistinguishable_states_is_the_log_of_the_mean_exponential() -> None:
    """Closed form: a quarter of 4,000 samples with reward 2 and the others with 0, at scale 1.5."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nats = nn.Parameter(torch.tensor(3.0))

        def forward(self, x: Tensor, *_: object) -> Tensor:
            return self.nats.expand(len(x))

    rewards = 2.0 * (torch.arange(4000) % 4 == 0)
    x = torch.zeros(4000, 1)
    states = RecordedStates(x, x, x[:, 0], torch.arange(4000), rewards, ("",) * 4000)
    network = Constant()
    fit = fit_soft_value(states, network, 1.5, updates=400, learning_rate=0.05)
    found = ValueFunction(network, fit)(State(x[:1], (x[:1],), None, 0, 1, 1.0), [""]).item()
    soft = math.log(0.25 * math.exp(3) + 0.75) / 1.5
    # The tenth that is left out has 100 +- 9 such samples.
    assert abs(found - soft) < 0.05
    assert abs(fit.offset - soft) < 1e-6
    assert abs(soft - 0.5) > 0.5
    assert fit.ess == pytest.approx(4000 * (math.exp(3) + 3) ** 2 / 4 / (math.exp(6) + 3))


def test_the_fitted_value_approaches_the_soft_value_and_no_mean_reward(trained) -> None:
    """In nats under the tilted law, where SVDD goes. Measured over three seeds, at most 0.12 (ddim)
    and 0.22 (flow); E[reward | x] errs by 0.22, 0.63, 0.88 and by 1.4, 2.3, 0.6 at 0, 5, 10."""
    scheduler, value = trained
    scale = SCALES[scheduler]
    chain = Chain(BIMODAL, levels(SCHEDULERS[scheduler], STEPS), [1.0] * STEPS)
    rewards = REWARD(decode(chain.nodes[-1][:, None]), [])
    soft = chain.log_values(scale * rewards)
    mean = [v / 1e-6 for v in chain.log_values(1e-6 * rewards)]
    mass = chain.start
    for k, move in enumerate(chain.moves):
        if k in (0, 5, 10, 15, 19):
            tilted = mass * soft[k].exp() / (mass @ soft[k].exp())
            ours = error(scale * judged(value, chain, k), soft[k], tilted)
            assert ours < (0.3 if scheduler == "flow" and k == 0 else 0.15)
            if k <= 10:
                assert error(scale * mean[k], soft[k], tilted) > 4 * ours
        mass = mass if move is None else mass @ move


def test_svdd_with_a_trained_value_lands_closer_to_the_tilted_law(trained) -> None:
    """Bias of E[x] with 16 candidates: -0.01 and 0.16 (ddim), -0.08 and 0.27 (flow)."""
    scheduler, value = trained
    scale = SCALES[scheduler]
    chain = Chain(BIMODAL, levels(SCHEDULERS[scheduler], STEPS), [1.0] * STEPS)
    x = chain.nodes[-1]
    tilted = chain.masses() * (scale * REWARD(decode(x[:, None]), [])).exp()
    mean = tilted @ x / tilted.sum()
    method = replace(SVDD(16, scale).settings(), select="draw")
    found = [
        vectors(run(SCHEDULERS[scheduler], REWARD, method, 1000, value=judge).samples)[:, 0]
        for judge in (value, None)
    ]
    bias, of_the_clean_prediction = ((x.mean() - mean).abs().item() for x in found)
    standard_error = math.hypot(*(x.std().item() for x in found)) / math.sqrt(1000)
    assert bias < of_the_clean_prediction - 4 * standard_error
    assert bias < 0.12


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_states_are_recorded_with_their_own_ends(scheduler) -> None:
    """The last clean prediction of these chains is the finished sample, and that its reward."""
    states = record(scheduler, LinearReward([1.0]), calls=12, batch=3)
    alpha, sigma = levels(SCHEDULERS[scheduler], STEPS)[-2]
    last = (states.noise_to_signal * alpha / sigma - 1).abs() < 1e-3
    assert last.any()
    ends = states.rewards[states.sample[last]]
    torch.testing.assert_close(states.clean[last].flatten(), ends, rtol=0, atol=1e-5)
    assert states.prompts == (("up",) * 3 + ("down",) * 3) * 6


def test_every_state_of_the_way_has_its_chance_to_be_recorded() -> None:
    states = record(calls=12, batch=2)
    assert len(states.x) == 12 * 2 * 8
    assert len(states.noise_to_signal.unique()) == STEPS
    assert torch.bincount(states.sample).eq(8).all()


def test_the_same_seed_gives_the_same_value() -> None:
    def train(seed: int) -> ValueFunction:
        pipe = mixture_pipeline(BIMODAL, SCHEDULERS["ddim"])
        network = small()
        return train_value(
            pipe, REWARD, [""], network, 1.0, calls=2, updates=20, decoder=decode, seed=seed
        )

    first, again, other = train(1), train(1), train(2)
    assert first.fit == again.fit
    for a, b in zip(first.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.fit.offset != other.fit.offset
    assert not torch.equal(first.network.last.weight, other.network.last.weight)


def test_a_saved_value_is_read_back(tmp_path) -> None:
    states, network = record(), small()
    value = ValueFunction(network, fit_soft_value(states, network, 2.0, updates=10))
    value.save(tmp_path / "value")
    read = ValueFunction.load(tmp_path / "value", LatentValue(1, 32, seed=5))
    state = State(states.x[:8], (states.clean[:8],), None, 0, STEPS, 3.0)
    assert read.fit == value.fit
    assert torch.equal(read(state, [""] * 8), value(state, [""] * 8))
    assert value(state, [""] * 8).std() > 0
    with pytest.raises(RuntimeError, match="size mismatch"):
        ValueFunction.load(tmp_path / "value", LatentValue(1, 16))
    with pytest.raises(FileNotFoundError):
        ValueFunction.load(tmp_path, small())


def test_progress_is_reported() -> None:
    told: list[tuple[str, int, int]] = []
    train_value(
        mixture_pipeline(BIMODAL, SCHEDULERS["ddim"]),
        REWARD,
        [""],
        small(),
        1.0,
        calls=3,
        batch=4,
        updates=2,
        decoder=decode,
        progress=lambda *step: told.append(step),
    )
    sampling = [("sampling", n, 3) for n in (1, 2, 3)]
    assert told == [*sampling, ("fitting", 1, 2), ("fitting", 2, 2)]


def test_samples_without_a_reward_are_left_out_and_counted() -> None:
    """Bit by bit as if they had never been there, though a whole call fails."""

    def fails(samples: Samples, prompts: Sequence[str]) -> Tensor:
        rewards = REWARD(samples, prompts)
        rewards[: len(rewards) if prompts[0] == "up" else 1] = torch.nan
        return rewards

    states = record(reward=fails, calls=2, batch=20)
    alive = states.sample > 20
    alone = RecordedStates(
        states.x[alive],
        states.clean[alive],
        states.noise_to_signal[alive],
        states.sample[alive] - 21,
        states.rewards[21:],
        states.prompts[21:],
    )
    networks = small(), small()
    fits = [
        fit_soft_value(s, n, 1.0, updates=5) for s, n in zip((states, alone), networks, strict=True)
    ]
    assert (fits[0].samples, fits[0].failures) == (19, 21)
    assert fits[0] == replace(fits[1], failures=21)
    for a, b in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(a, b)


class Flat(nn.Module):
    """A linear function of the states."""

    def __init__(self, dimension: int, outputs: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(dimension, outputs)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor, *_: object) -> Tensor:
        return self.linear(x.flatten(1)).squeeze(1)


def test_what_a_few_samples_say_by_chance_is_not_learned() -> None:
    """Rewards that have nothing to do with the states: a loss of 1.51, and 2.08 at the end."""
    source = torch.Generator().manual_seed(0)
    x, rewards = (torch.randn(*s, generator=source) for s in ((200, 256), (200,)))
    states = RecordedStates(x, x, torch.ones(200), torch.arange(200), rewards, ("",) * 200)
    fit = fit_soft_value(states, Flat(256), 1.0, updates=400, rows=64, learning_rate=1e-2)
    assert fit.loss < 1.1 * fit.naive_loss


def test_a_value_depends_on_the_prompt_through_its_embedding() -> None:
    def by_prompt(samples: Samples, prompts: Sequence[str]) -> Tensor:
        return embed(prompts)[:, 0] * vectors(samples)[:, 0]

    def embed(prompts: Sequence[str]) -> Tensor:
        return torch.tensor([[1.0 if prompt == "up" else -1.0] for prompt in prompts])

    states, network = record(reward=by_prompt, calls=4, batch=250), small(embed, 1)
    fit = fit_soft_value(states, network, 1.0, updates=400, rows=128, learning_rate=3e-3)
    value = ValueFunction(network, fit)
    x = torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None, None, None]
    late = State(x, (x,), None, STEPS - 1, STEPS, 0.1)
    up, down, low_up, low_down = value(late, ["up", "down", "up", "down"]).tolist()
    # The rewards are 1, -1, -1 and 1.
    assert up > down + 0.5 and low_down > low_up + 0.5
    blind = small()
    value = ValueFunction(blind, fit_soft_value(states, blind, 1.0, updates=2))
    assert torch.equal(value(late, ["up"] * 4), value(late, ["down"] * 4))


def redness(samples: Samples, prompts: Sequence[str]) -> Tensor:
    pixels = images(samples)
    return pixels[:, 0].mean((1, 2)) - pixels[:, 1:].mean((1, 2, 3))


def test_latents_of_images_are_judged_and_not_decoded_on_the_way(tmp_path) -> None:
    pipe = stable_diffusion(tmp_path)
    seen: list[int] = []

    def counted(samples: Samples, prompts: Sequence[str]) -> Tensor:
        seen.append(len(samples))
        return redness(samples, prompts)

    call = {"num_inference_steps": 4, "output_type": "pt", "guidance_scale": 1.0}
    pipe.set_progress_bar_config(disable=True)
    value = train_value(
        pipe, counted, ["a red cat"], LatentValue(4), 5.0, calls=3, batch=8, updates=40, call=call
    )
    assert seen == [8, 8, 8]
    assert value.fit.samples == 24
    steered = steer(pipe, counted, SVDD(4, 5.0), value=value)
    steered("a red cat", generator=torch.Generator().manual_seed(0), **call)
    assert seen == [8, 8, 8, 4]
    assert (steered.last.history[0][1].std(1) > 0).all()
    with pytest.raises(ValueError, match="a call of 2 outputs"):
        record_states(pipe, redness, ["a"], batch=2, call={**call, "num_images_per_prompt": 2})


def test_a_latent_value_says_a_number_of_every_size_and_level() -> None:
    network = LatentValue(3, seed=1)
    nn.init.ones_(network.last.weight)
    for size in ((1, 1), (5, 9), (32, 32)):
        x = torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(0))
        ratio = torch.tensor([0.0, 0.1, 10.0, math.inf])
        found = network(x, 0.1 * x, ratio, [""] * 4)
        assert found.shape == (4,) and found.isfinite().all()
        # Schedulers scale their states as they like.
        torch.testing.assert_close(network(30 * x, 0.1 * x, ratio, [""] * 4), found)
        assert not torch.allclose(network(x, 0.1 * x, ratio.flip(0), [""] * 4), found)


def test_what_cannot_be_learned_is_refused() -> None:
    states = record()
    for scale in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="positive and finite"):
            fit_soft_value(states, small(), scale)
    with pytest.raises(ValueError, match="0 updates"):
        fit_soft_value(states, small(), 1.0, updates=0)
    with pytest.raises(FloatingPointError, match="learning rate"):
        fit_soft_value(states, Flat(1), 1.0, updates=2, learning_rate=math.inf)
    with pytest.raises(ValueError, match="a batch of 1"):
        record(batch=1)
    with pytest.raises(TrainingError, match="constant reward"):
        fit_soft_value(record(reward=LinearReward([0.0])), small(), 1.0)
    with pytest.raises(ValueError, match=r"shape \(256, 2\) for 256 states"):
        fit_soft_value(states, Flat(1, 2), 1.0)


def test_a_value_does_not_guide() -> None:
    states, network = record(), small()
    value = ValueFunction(network, fit_soft_value(states, network, 1.0, updates=2))
    with pytest.raises(ValueError, match="without guidance"):
        run(SCHEDULERS["ddim"], REWARD, DAS(2), 1, value=value)
