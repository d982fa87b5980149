"""Discrete diffusion through the hook: exact laws, rows that keep what is theirs, and real text."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import (
    AmusedScheduler,
    BlockRefinementScheduler,
    DiscreteDDIMScheduler,
    EntropyBoundScheduler,
)
from steering.text_pipeline import (
    EOS,
    LETTERS,
    MASK,
    PROMPT,
    SYMBOLS,
    TableReward,
    V,
    data_law,
    masked_chain,
    masked_pipeline,
    uniform_chain,
    uniform_pipeline,
    written_by,
)
from torch import Generator, Tensor

from diffreward.enumeration import number, sequences
from diffreward.random import randn, stream
from diffreward.samples import Samples, Texts, images, texts
from diffreward.steering import FKSteering, Guidance, PathSearch, Steered, steer
from diffreward.steering.drop_in.token_laws import family_of
from diffreward.steering.drop_in.tokens import TokenRoute, draw_tokens, look_ahead
from diffreward.steering.methods import ONCE
from diffreward.steering.resampling import Resampling

SETTINGS = [
    ("difference", 0.0, 1),
    ("difference", 0.8, 4),
    ("difference", 1.0, 1),
    ("max", 1.0, 4),
    ("sum", 0.5, 1),
    ("sum", 1.0, 4),
]
BLOCK = {"block_length": 2, "sampling_method": "multinomial", "temperature": 1.0}
BLOCK |= {"threshold": 2.0, "editing_threshold": None, "use_chat_template": False}


def pairs(ids: Tensor) -> Tensor:
    """Which letters stand at each two places, (n, L) -> (n, L (L - 1) / 2 * V^2) of 0 and 1."""
    places = torch.combinations(torch.arange(ids.shape[1]))
    return torch.nn.functional.one_hot(number(ids[:, places], V), V**2).flatten(1).double()


def assert_tilted(steered: Steered, law: Tensor, rewards: Tensor, length: int) -> None:
    """Evidence, and the law of all pairs of letters weighted by it, within 4 standard errors."""
    tilted, all_pairs = law * rewards.exp(), pairs(sequences(V, length))
    exact, log_z = tilted @ all_pairs / tilted.sum(), tilted.sum().log()
    z = (steered.log_evidence - log_z).exp()
    root = math.sqrt(len(z))
    assert abs(z.mean() - 1) < 4 * z.std() / root < 0.3
    seen = pairs(ids_of(steered.particles)).reshape(*steered.weights.shape, -1)
    estimates = z[:, None] * (steered.weights[..., None] * seen).sum(1)
    found, error = estimates.mean(0), estimates.std(0) / root
    # Pairs that hardly occur have no normal estimate.
    assert ((found - exact).abs() < 4 * error + 1e-3).all()
    # The comparison must be able to fail: the law without the tilt is far away.
    assert ((law @ all_pairs - exact).abs() / (4 * error + 1e-3)).max() > 2


def ids_of(samples: Samples) -> Tensor:
    """The letters' numbers, (B, L)."""
    return torch.tensor([[LETTERS.index(letter) for letter in text] for text in texts(samples)])


def settings(potential: str, threshold: float, draws: int) -> FKSteering:
    """Every state is scored; four particles leave much to resampling."""
    return FKSteering(
        4, 1.0, potential, ess_threshold=threshold, interval=1, start=0.0, stop=1.0, draws=draws
    )


@pytest.mark.parametrize(("potential", "threshold", "draws"), SETTINGS)
def test_uniform_corruption_is_tilted_exactly(potential, threshold, draws) -> None:
    """The target is the tilt of the chain's own law, so that nothing but noise is left."""
    length, steps = 3, 4
    law, rewards = data_law(length), randn((V**length,), stream(0, "rewards")).double()
    pipe = steer(
        uniform_pipeline(law, length, steps),
        TableReward(rewards),
        settings(potential, threshold, draws),
        rows=1 << 20,
        seed=0,
    )
    pipe([""] * 512, num_inference_steps=steps, generator=Generator().manual_seed(0))
    chain = uniform_chain(law, length, steps)
    torch.testing.assert_close(chain.sum().item(), 1.0)
    assert (pipe.last.lineage != torch.arange(4)).any() == (threshold > 0)
    assert_tilted(pipe.last, chain, rewards, length)


@pytest.mark.parametrize(("potential", "threshold", "draws"), SETTINGS)
def test_llada2_is_tilted_exactly_across_blocks(potential, threshold, draws) -> None:
    """Two blocks of two letters: the first is scored without the second, and stays with it."""
    length = 4
    law, rewards = data_law(length), 0.7 * randn((V**length,), stream(1, "rewards")).double()
    firsts = rewards.reshape(V**2, V**2).mean(1)

    def reward(samples: Samples, prompts: Sequence[str]) -> Tensor:
        known = texts(samples)
        table = rewards if len(known[0]) == length else firsts
        return TableReward(table)(samples, prompts)

    method = settings(potential, threshold, draws)
    pipe = steer(masked_pipeline(law, length), reward, method, rows=1 << 20, seed=0)
    generator = Generator().manual_seed(0)
    call = {**BLOCK, "gen_length": length, "num_inference_steps": 2, "eos_early_stop": False}
    pipe([PROMPT] * 512, generator=generator, **call)
    assert [visit for visit, _ in pipe.last.history] == [0, 1, 2, 3]
    chain = masked_chain(law, length, 2)
    torch.testing.assert_close(chain.sum().item(), 1.0)
    assert_tilted(pipe.last, chain, rewards, length)


def clue(ids: Tensor, timestep: int) -> Tensor:
    """Draws the first letter of a text and derives all others from it; one that begins with C ends.

    The second letter is the less sure as long as the first is not there, so that it waits for it.
    """
    first = ids[:, len(PROMPT)]
    following = (first[:, None] + torch.arange(ids.shape[1]) - len(PROMPT)) % V
    following[first == V - 1, len(PROMPT) + 1] = EOS
    logits = torch.full((*ids.shape, SYMBOLS), -torch.inf)
    logits.scatter_(2, following[..., None], 0.0)
    logits[:, len(PROMPT), :V] = 0.0
    logits[first == MASK, len(PROMPT) + 1] = torch.tensor([0.0] * V + [-torch.inf, 0.0])
    return logits


def written(pipe: Any, prompts: int, seed: int, **call: Any) -> Any:
    """A call that writes two blocks of two letters."""
    generator = Generator().manual_seed(seed)
    call = {**BLOCK, "gen_length": 4, "num_inference_steps": 2} | call
    return pipe([PROMPT] * prompts, generator=generator, **call)


@pytest.mark.parametrize("state", [1, 2, 3])
def test_particles_turned_round_keep_their_blocks_and_stay_finished(state: int) -> None:
    """All chance is in the first letter, so that the plain call says what becomes of each row."""
    pipe, turned = written_by(clue), Resampling(lambda w, _: torch.arange(8).flip(0)[None], True)
    plain = written(pipe, 8, seed=4)
    kinds = {text[:1] for text in plain.texts}
    assert kinds == set("ABC") and not torch.equal(plain.sequences, plain.sequences.flip(0))
    assert {text for text in plain.texts if text.startswith("C")} == {"C"}
    method = FKSteering(
        8, 1.0, resampling=turned, ess_threshold=1.0, interval=ONCE, start=state / 4, stop=1.0
    )
    steered = steer(pipe, TableOfFirst(), method)
    written(steered, 1, seed=4)
    turns = (steered.last.lineage[:, 0] != torch.arange(8)).any(1)
    assert turns.nonzero().tolist() == [[state]]
    particles = steered.last.all_particles()
    assert particles.texts == plain.texts[::-1]
    assert torch.equal(particles.sequences, plain.sequences.flip(0))


class TableOfFirst:
    """Another reward for each first letter."""

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([float(LETTERS.index(text[0])) for text in texts(samples)])


def test_looking_changes_nothing_of_what_llada2_writes() -> None:
    """Scale 0 and no resampling is the plain call of as many rows, bit for bit."""
    pipe = masked_pipeline(data_law(4), 4)
    plain = written(pipe, 6, seed=1)
    looking = FKSteering(3, 0.0, ess_threshold=0.0, interval=1, start=0.0, stop=1.0, draws=2)
    steered = steer(pipe, TableOfFirst(), looking)
    chosen = written(steered, 2, seed=1)
    found = steered.last.all_particles()
    assert torch.equal(found.sequences, plain.sequences) and found.texts == plain.texts
    assert len(chosen.texts) == 2 and set(chosen.texts) <= set(plain.texts)
    assert steered.last.cost.scored_rows == 6 * (4 * 2 + 1)
    assert looking.cost(4).scored_rows == 3 * (4 * 2 + 1)


def test_the_reward_sees_on_the_way_what_the_pipeline_would_return() -> None:
    """Without the prompt, without blocks to come, and no longer than was asked for."""
    seen: list[str] = []

    def reward(samples: Samples, prompts: Sequence[str]) -> Tensor:
        seen.extend(texts(samples))
        assert len(prompts) == len(samples) and set(prompts) == {PROMPT}
        return torch.zeros(len(samples))

    pipe = steer(masked_pipeline(data_law(4), 4), reward, settings("difference", 0.0, 3))
    written(pipe, 1, seed=0, gen_length=3)
    assert [len(text) for text in seen] == [2] * 24 + [3] * 24 + [3] * 4
    # What is decided by then is in all later texts of a particle.
    second_block, final = seen[24:36], seen[-4:]
    assert [text[:2] for text in second_block] == [text[:2] for text in final for _ in range(3)]


def test_blocks_that_end_early_make_up_for_scores_they_have_skipped() -> None:
    """With a threshold of 0 a block is done after one step of its four; another one notices."""
    method = FKSteering(2, 1.0, interval=ONCE, start=0.25, stop=0.25)
    pipe = steer(masked_pipeline(data_law(4), 4), TableOfFirst(), method)
    written(pipe, 1, seed=0, threshold=0.0, num_inference_steps=4)
    assert len(pipe.last.lineage) == 4
    assert [visit for visit, _ in pipe.last.history] == [2]


class TestDraws:
    def test_their_rewards_count_by_the_log_of_the_mean_exponential(self) -> None:
        rewards = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0]])
        torch.testing.assert_close(
            look_ahead(rewards, 2.0), torch.tensor([math.log(5.0) / 2, 2.0], dtype=torch.float64)
        )
        assert look_ahead(rewards, 0.0).tolist() == rewards.mean(1).tolist()
        assert look_ahead(rewards[:, 1:], 7.0).tolist() == rewards[:, 1].tolist()
        assert look_ahead(torch.tensor([[1.0, math.nan]]), 1.0).isnan().all()
        large = look_ahead(1e5 * rewards[:1], 10.0).item()
        assert large == pytest.approx(1e5 * math.log(3.0) - math.log(2.0) / 10, abs=0.01)

    def test_tokens_are_drawn_by_their_probabilities_and_impossible_ones_never(self) -> None:
        law, n = torch.tensor([0.0, 0.6, 0.0, 0.399, 0.001, 0.0]), 200_000
        ids = draw_tokens(law.expand(1, 1, -1), n, stream(0, "draws")).flatten()
        counts = torch.bincount(ids, minlength=6) / n
        assert ((counts - law).abs() <= 4 * (law * (1 - law) / n).sqrt()).all()

    def test_there_is_at_least_one(self) -> None:
        with pytest.raises(ValueError, match="got 0 draws"):
            FKSteering(draws=0)


LOGITS = torch.tensor([[1.0, 0.0, -1.0, 0.5, -torch.inf], [0.0, 2.0, 1.0, -1.0, -torch.inf]])
REFINE = {"mask_token_id": None, "temperature": 0.7, "top_k": 3, "top_p": 0.8}
REFINE |= {"sampling_method": "multinomial"}


def route_of(scheduler: Any) -> TokenRoute:
    """Of four states."""
    family = family_of(scheduler)
    assert family is not None
    return TokenRoute(scheduler, family, FKSteering(), 4)


@pytest.mark.parametrize(
    ("scheduler", "timestep", "arguments"),
    [
        (BlockRefinementScheduler(), 0, REFINE),
        (BlockRefinementScheduler(), 0, {**REFINE, "sampling_method": "greedy"}),
        (DiscreteDDIMScheduler(), 1, {"temperature": 0.5}),
        (DiscreteDDIMScheduler(), 1, {"temperature": 0.0}),
        (EntropyBoundScheduler(), 3, {}),
        (AmusedScheduler(mask_token_id=4), 2, {}),
    ],
)
def test_the_law_of_clean_tokens_is_what_the_scheduler_draws_from(
    scheduler: Any, timestep: int, arguments: dict[str, Any]
) -> None:
    n = 40_000
    scheduler.set_timesteps(4)
    sample = torch.full((n, 2), 4 if "mask_token_id" in scheduler.config else 0)
    generator = Generator().manual_seed(0)
    output = scheduler.step(
        LOGITS.expand(n, -1, -1), timestep, sample, generator=generator, **arguments
    )
    drawn = output.get("sampled_tokens", output.get("pred_original_sample"))
    call = {"model_output": LOGITS[None], "sample": sample[:1], "timestep": timestep, **arguments}
    law = route_of(scheduler).clean(0, call)[0]
    for place in range(2):
        share = torch.bincount(drawn[:, place], minlength=5) / n
        error = (law[place] * (1 - law[place]) / n).sqrt()
        assert ((share - law[place]).abs() <= 4 * error + 1e-6).all()


def test_decided_tokens_are_certain() -> None:
    route = route_of(BlockRefinementScheduler())
    call = {**REFINE, "model_output": LOGITS[None], "timestep": 1}
    masked = route.clean(0, {**call, "sample": torch.tensor([[2, 7]]), "mask_token_id": 7})
    assert masked[0, 0].tolist() == [0, 0, 1, 0, 0] and masked[0, 1].max() < 1
    route._scheduler._committed = torch.tensor([[False, True]])
    uniform = route.clean(0, {**call, "sample": torch.tensor([[2, 3]])})
    assert uniform[0, 1].tolist() == [0, 0, 0, 1, 0] and uniform[0, 0].max() < 1
    # What it committed in the last block, it forgets when the next begins.
    assert route.clean(0, {**call, "sample": torch.tensor([[2, 3]]), "timestep": 0})[0, 1].max() < 1


class TestErrors:
    def test_tokens_have_no_gradient_and_no_way_back(self) -> None:
        pipe = masked_pipeline(data_law(4), 4)
        for method in (Guidance(), PathSearch()):
            with pytest.raises(ValueError, match="steps tokens, along which"):
                written(steer(pipe, TableOfFirst(), method), 1, seed=0)

    def test_greedy_particles_would_stay_alike(self) -> None:
        pipe = steer(masked_pipeline(data_law(4), 4), TableOfFirst())
        with pytest.raises(ValueError, match="temperature above 0"):
            written(pipe, 1, seed=0, temperature=0.0)
        greedy = written(steer(pipe._pipe, TableOfFirst(), eta=0.0), 1, seed=0, temperature=0.0)
        assert len(greedy.texts) == 1

    def test_a_reward_of_images_is_told_that_it_sees_texts(self) -> None:
        pipe = steer(
            masked_pipeline(data_law(4), 4), lambda samples, _: images(samples).flatten(1).mean(1)
        )
        with pytest.raises(TypeError, match="scores Images; the model produced Texts"):
            written(pipe, 1, seed=0)

    def test_decoders_of_pictures_are_refused(self) -> None:
        pipe = masked_pipeline(data_law(4), 4)
        with pytest.raises(ValueError, match="which it decodes itself"):
            written(steer(pipe, TableOfFirst(), preview_shrink=2), 1, seed=0)
        with pytest.raises(ValueError, match="which it decodes itself"):
            decoder = lambda x: Texts(("",) * len(x))  # noqa: E731
            written(steer(pipe, TableOfFirst(), decoder=decoder), 1, seed=0)
