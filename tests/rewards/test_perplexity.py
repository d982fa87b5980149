"""The likelihood of texts, against one text after the other."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_texts import causal_model

from diffreward.conformance import check_reward
from diffreward.rewards.perplexity import Perplexity
from diffreward.samples import Images, Texts

STRINGS = ("the cat sat", "a", "the dog sat on the mat with a cat", "dog dog dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal_model(tmp_path_factory.mktemp("gpt2"))


def by_hand(folder: Path, text: str) -> list[float]:
    """log p of each token, from the probabilities of the next one."""
    from transformers import AutoTokenizer, GPT2LMHeadModel

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = [tokenizer.bos_token_id, *tokenizer.encode(text)]
    found = []
    for i in range(1, len(ids)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:i]])).logits[0, -1]
        found.append(float(logits.log_softmax(0)[ids[i]]))
    return found


def test_it_is_the_mean_log_probability_of_each_token_given_those_before(folder: Path) -> None:
    scores = Perplexity(str(folder), rows=3)(Texts(STRINGS), [""] * 4)
    expected = [by_hand(folder, text) for text in STRINGS]
    means = torch.tensor([sum(line) / len(line) for line in expected])
    torch.testing.assert_close(scores, means, atol=1e-5, rtol=0)
    per = Perplexity(str(folder), per="character")(Texts(STRINGS), [""] * 4)
    each = [sum(line) / len(text) for line, text in zip(expected, STRINGS, strict=True)]
    torch.testing.assert_close(per, torch.tensor(each), atol=1e-5, rtol=0)


def test_a_long_text_is_scored_by_what_the_context_holds(folder: Path) -> None:
    reward = Perplexity(str(folder))
    words = ["the", "cat", "sat", "on", "a", "mat"] * 10
    # 24 places, of which the beginning takes one.
    long, cut = (reward(Texts((" ".join(words[:n]),)), [""]) for n in (60, 23))
    torch.testing.assert_close(long, cut)


def test_an_empty_text_has_no_score(folder: Path) -> None:
    scores = Perplexity(str(folder))(Texts(("", "a cat")), ["", ""])
    assert scores.isnan().tolist() == [True, False]


def test_it_keeps_the_contract_and_copies_load_by_themselves(folder: Path) -> None:
    reward = Perplexity(str(folder))
    check_reward(reward, Texts(STRINGS), [""] * 4)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy._network is None
    torch.testing.assert_close(copy(Texts(STRINGS), [""] * 4), reward(Texts(STRINGS), [""] * 4))


def test_mistakes_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        Perplexity(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="rows"):
        Perplexity(rows=0)
    with pytest.raises(TypeError, match="Images"):
        Perplexity()(Images(torch.zeros(1, 3, 4, 4)), [""])
