"""Labels of texts, against the model itself, one text at a time."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_texts import classifier

from diffreward.conformance import check_reward
from diffreward.rewards.text_classifier import TextClassifier
from diffreward.samples import Texts

STRINGS = ("the cat is good", "bad", "the dog is not good on the mat", "a cat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("roberta"))


def by_hand(folder: Path, text: str) -> torch.Tensor:
    from transformers import AutoTokenizer, RobertaForSequenceClassification

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = RobertaForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(0).log()


def test_it_is_the_log_probability_of_the_label(folder: Path) -> None:
    scores = TextClassifier(str(folder), "good", rows=3)(Texts(STRINGS), [""] * 4)
    expected = torch.stack([by_hand(folder, text) for text in STRINGS])
    torch.testing.assert_close(scores, expected[:, 1], atol=1e-5, rtol=0)
    other = TextClassifier(str(folder), 0)(Texts(STRINGS), [""] * 4)
    torch.testing.assert_close(other, expected[:, 0], atol=1e-5, rtol=0)


def test_a_long_text_is_judged_by_what_the_context_holds(folder: Path) -> None:
    # 14 places, the first of which RoBERTa keeps for padding and never uses beyond.
    reward = TextClassifier(str(folder), "good")
    long, cut = (reward(Texts((" ".join(["the cat"] * n),)), [""]) for n in (30, 6))
    torch.testing.assert_close(long, cut)


def test_it_keeps_the_contract_and_copies_load_by_themselves(folder: Path) -> None:
    reward = TextClassifier(str(folder), "good")
    check_reward(reward, Texts(STRINGS), [""] * 4)
    copy = pickle.loads(pickle.dumps(reward))
    torch.testing.assert_close(copy(Texts(STRINGS), [""] * 4), reward(Texts(STRINGS), [""] * 4))


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        TextClassifier(str(tmp_path / "missing"), 1)
    with pytest.raises(ValueError, match=r"labels \{0: 'bad', 1: 'good'\}, got 'great'"):
        TextClassifier(str(folder), "great")(Texts(("a",)), [""])
