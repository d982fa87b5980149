"""The bundled text pipeline, and the scripts that made it."""

import importlib
import itertools
import json
import math
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from diffusers import BlockRefinementScheduler, DiffusionPipeline, LLaDA2Pipeline
from torch import Tensor
from transformers import ModernBertForMaskedLM, PreTrainedTokenizerFast

ASSETS = Path(__file__).parents[1] / "assets"
PLAYS = Path(__file__).parents[2] / "shared" / "data" / "rewards" / "text"

CALL = {
    "gen_length": 24,
    "block_length": 16,
    "num_inference_steps": 8,
    "temperature": 1.0,
    "sampling_method": "multinomial",
    "threshold": 2.0,
    "editing_threshold": None,
    "use_chat_template": False,
}


@pytest.fixture(scope="module")
def pipe() -> LLaDA2Pipeline:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ASSETS / "verses" / "tokenizer")
    loaded = DiffusionPipeline.from_pretrained(
        ASSETS / "verses", tokenizer=tokenizer, local_files_only=True
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
def verses(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ASSETS / "scripts"))
    return importlib.import_module("verses")


@pytest.fixture
def ngrams(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ASSETS / "scripts"))
    return importlib.import_module("ngrams")


def logits(pipe: LLaDA2Pipeline, ids: Tensor, attention: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    with torch.no_grad():
        return pipe.model(ids, attention_mask=attention, position_ids=positions).logits


def masked_nats_of(pipe: LLaDA2Pipeline, text: str) -> float:
    """The mean of -log p of each token given all the others."""
    ids = pipe.tokenizer(text, return_tensors="pt").input_ids
    places = torch.arange(1, ids.shape[1])
    rows = ids.repeat(len(places), 1)
    rows[places - 1, places] = pipe.mask_token_id
    log_p = logits(pipe, rows, torch.ones_like(rows)).log_softmax(-1)
    return -log_p[places - 1, places, ids[0, 1:]].mean().item()


def test_the_folder_loads_as_classes_of_diffusers_and_transformers(pipe: LLaDA2Pipeline) -> None:
    assert type(pipe) is LLaDA2Pipeline
    assert type(pipe.model) is ModernBertForMaskedLM
    assert type(pipe.scheduler) is BlockRefinementScheduler
    assert pipe.model.dtype == torch.float32
    assert not pipe.model.training


def test_the_folder_is_small() -> None:
    sizes = [file.stat().st_size for file in (ASSETS / "verses").rglob("*") if file.is_file()]
    assert sum(sizes) <= 4e6


def test_older_transformers_would_build_the_same_network() -> None:
    config = json.loads((ASSETS / "verses" / "model" / "config.json").read_text())
    assert config["global_rope_theta"] == config["rope_parameters"]["full_attention"]["rope_theta"]
    assert config["global_attn_every_n_layers"] == 1
    assert set(config["layer_types"]) == {"full_attention"}


def test_the_tokenizer_loses_nothing_that_plays_contain(pipe: LLaDA2Pipeline) -> None:
    text = "ROMEO:\nBut, soft! what light through yonder window breaks?\n\nJULIET:\nAy me!\n"
    ids = pipe.tokenizer(text).input_ids
    assert pipe.tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids[0] == pipe.tokenizer.bos_token_id
    assert len(ids) < len(text) / 1.5
    assert len(pipe.tokenizer) == pipe.model.config.vocab_size == 512


def test_marks_are_never_drawn(pipe: LLaDA2Pipeline) -> None:
    masked = torch.full((1, 16), pipe.mask_token_id)
    p = logits(pipe, masked, torch.ones_like(masked)).softmax(-1)
    marks = pipe.tokenizer.all_special_ids
    assert len(set(marks)) == 5
    assert p[..., marks].max() == 0


def test_padding_on_the_left_changes_nothing(pipe: LLaDA2Pipeline) -> None:
    rows = pipe.tokenizer(
        ["Good my lord", "ROMEO:\nGood my lord"], padding=True, return_tensors="pt"
    )
    alone = pipe.tokenizer("Good my lord", return_tensors="pt")
    n = alone.input_ids.shape[1]
    assert rows.attention_mask[0].tolist() == [0] * (rows.input_ids.shape[1] - n) + [1] * n
    padded = logits(pipe, rows.input_ids, rows.attention_mask)[0, -n:]
    expected = logits(pipe, alone.input_ids, alone.attention_mask)[0]
    torch.testing.assert_close(padded, expected, rtol=1e-4, atol=1e-3)


def test_the_prompt_is_kept_and_each_step_commits_its_share(pipe: LLaDA2Pipeline) -> None:
    prompt = pipe.tokenizer("ROMEO:", return_tensors="pt").input_ids
    left: list[list[int]] = []

    def record(pipe: LLaDA2Pipeline, step: int, t: int, tensors: dict[str, Tensor]) -> dict:
        assert torch.equal(tensors["block_x"][:, : prompt.shape[1]], prompt.expand(2, -1))
        left.append((tensors["block_x"] == pipe.mask_token_id).sum(1).tolist())
        return {}

    output = pipe(prompt=["ROMEO:"] * 2, **CALL, callback_on_step_end=record)
    # Two of the 16 in each step, of which the prompt fills some; the last evaluation of a block
    # may find nothing left to commit.
    expected = [*range(14 - prompt.shape[1], 0, -2), 0, *range(14, -1, -2)]
    assert [count for count, _ in itertools.groupby(one for one, _ in left)] == expected
    assert all(one == other for one, other in left)
    assert output.sequences.shape == (2, 24)


def test_rows_of_equal_prompts_differ_and_a_generator_repeats_them(pipe: LLaDA2Pipeline) -> None:
    first, again = (
        pipe(prompt=["ROMEO:"] * 4, **CALL, generator=torch.Generator().manual_seed(1)).texts
        for _ in range(2)
    )
    assert first == again
    assert len(set(first)) == 4


@pytest.mark.parametrize("prompt", ["ROMEO:", "", ["To be", "ROMEO:\nWhat say you"]])
def test_any_prompts_are_continued(pipe: LLaDA2Pipeline, prompt: str | list[str]) -> None:
    output = pipe(prompt=prompt, **CALL)
    assert len(output.texts) == (len(prompt) if isinstance(prompt, list) else 1)
    assert not (output.sequences == pipe.mask_token_id).any()


def test_the_model_prefers_english_to_english_backwards(pipe: LLaDA2Pipeline) -> None:
    line = "I will not go to the king, my lord."
    english = masked_nats_of(pipe, line)
    assert english == pytest.approx(2.3396, abs=0.005)
    assert masked_nats_of(pipe, line[::-1]) > english + 1


@pytest.mark.parametrize("prefix", [1, 5])
def test_every_number_of_masked_tokens_is_as_likely(verses: ModuleType, prefix: int) -> None:
    free = 12 - prefix
    prefixes = torch.full((100 * free,), prefix)
    masks = verses.draw_masks(prefixes, 12, torch.Generator().manual_seed(0))
    assert not masks[:, :prefix].any()
    counts = torch.bincount(masks.sum(1), minlength=13)
    assert counts.tolist() == [0] + [100] * free + [0] * prefix
    # A position is masked in (free + 1) / 2 of free cases, with an error of at most 0.5 / sqrt(n).
    shares = masks[:, prefix:].float().mean(0)
    expected = torch.full_like(shares, (free + 1) / (2 * free))
    torch.testing.assert_close(shares, expected, rtol=0, atol=4 * 0.5 / (100 * free) ** 0.5)


def test_the_bound_of_a_model_blind_to_context_is_its_cross_entropy(verses: ModuleType) -> None:
    log_p = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()

    def blind(input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=log_p.expand(*input_ids.shape, 4))

    windows = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 1, 1, 1]])
    masks = verses.draw_masks(torch.tensor([1, 1]), 5, torch.Generator().manual_seed(0))
    nats = verses.masked_nats(blind, windows, masks, 3)
    torch.testing.assert_close(nats, torch.tensor([math.log(2), math.log(4)]))


def test_windows_begin_with_lines(verses: ModuleType, pipe: LLaDA2Pipeline) -> None:
    text = "ROMEO:\nAy me!\n\nJULIET:\nO Romeo!\n" * 3
    plays = verses.tokenize(text, pipe.tokenizer)
    assert len(plays.starts) == 12
    assert int(plays.characters.sum()) == len(text)
    starts = plays.apart(8)
    windows = plays.windows(starts, 8)
    assert (windows[:, 0] == pipe.tokenizer.bos_token_id).all()
    lines = ("ROMEO:", "Ay me!", "JULIET:", "O Romeo!")
    decoded = pipe.tokenizer.batch_decode(windows, skip_special_tokens=True)
    assert len(decoded) > 3
    assert all(window.startswith(lines) for window in decoded)
    assert (starts.diff() >= 7).all()


def test_a_bigram_knows_an_alternation_and_a_unigram_does_not(ngrams: ModuleType) -> None:
    train = torch.tensor([0, 1] * 500)
    expected = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    torch.testing.assert_close(ngrams.unigram(train, 2), expected)
    table = ngrams.bigram(train, 2, 2.0).exp()
    # 500 and 499 pairs were seen; each symbol's prior is worth one more.
    torch.testing.assert_close(table[:, 1], torch.tensor([501 / 502, 1 / 501], dtype=torch.float64))
    best = ngrams.best_bigram(train, torch.tensor([0, 1, 0, 1]), 2)
    torch.testing.assert_close(best, ngrams.bigram(train, 2, min(ngrams.STRENGTHS)))


def test_held_out_plays_are_as_likely_as_the_read_me_says(
    pipe: LLaDA2Pipeline, verses: ModuleType
) -> None:
    if not PLAYS.exists():
        pytest.skip(f"{PLAYS} is not here")
    plays = verses.tokenize(verses.read_plays(PLAYS, "held out"), pipe.tokenizer)
    starts = plays.apart(96)[::8]
    masks = verses.draw_masks(torch.ones_like(starts), 96, torch.Generator().manual_seed(0))
    with torch.no_grad():
        nats = verses.masked_nats(pipe.model, plays.windows(starts, 96), masks, pipe.mask_token_id)
    # 2.006 nats per character, at 2.067 characters per token. The error of the mean is about 0.1.
    assert nats.mean().item() == pytest.approx(2.006 * 2.067, abs=0.4)
