import copy
import pickle
from pathlib import Path

import pytest
import torch

from diffreward.conformance import check_reward
from diffreward.rewards.sentiment import Sentiment
from diffreward.samples import Texts, Vectors

VADER = (
    Path(__file__).parents[2].parent / "shared" / "data" / "rewards" / "text" / "vader_lexicon.txt"
)

LINES = [
    "love\t3.0\t0.4\t[3, 3]",
    "hate\t-2.5\t0.6\t[-2, -3]",
    "Can't\t-1.0",
    "short-sighted\t-1.5\t0.1",
    "fed up\t-3.5\t0.1",
    ":)\t2.0\t0.1",
    "größe\t1.0\t0.1",
]


def sentiment(folder: Path, lines: list[str] = LINES) -> Sentiment:
    file = folder / "lexicon.txt"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Sentiment(str(file))


def scores(reward: Sentiment, *strings: str) -> list[float]:
    return reward(Texts(strings), [""] * len(strings)).tolist()


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("I love thee", 3.0),
        ("LOVE, hate!", (3.0 - 2.5) / 2),
        ("love love hate", (3.0 + 3.0 - 2.5) / 3),
        ("I can't. I can\u2019t!", -1.0),
        ("a 'short-sighted' king's love", (3.0 - 1.5) / 2),
        ("love2hate", (3.0 - 2.5) / 2),
        ("Größe", 1.0),
    ],
)
def test_the_score_is_the_mean_valence_of_the_known_words(
    tmp_path: Path, text: str, score: float
) -> None:
    assert scores(sentiment(tmp_path), text) == pytest.approx([score])


@pytest.mark.parametrize("text", ["", "what is it", "lovely hateful", "fed up :)", "\n\n", "123"])
def test_a_text_without_a_known_word_is_neutral(tmp_path: Path, text: str) -> None:
    assert scores(sentiment(tmp_path), text) == [0.0]


def test_the_last_of_equal_entries_counts(tmp_path: Path) -> None:
    reward = sentiment(tmp_path, ["lol\t2.9\t0.3", "LOL\t1.5\t0.3"])
    assert scores(reward, "lol") == [1.5]


def test_scores_are_float32_and_without_gradient(tmp_path: Path) -> None:
    values = sentiment(tmp_path)(Texts(("love", "hate")), ["", ""])
    assert values.dtype == torch.float32
    assert not values.requires_grad


def test_the_contract_is_kept(tmp_path: Path) -> None:
    check_reward(sentiment(tmp_path), Texts(("I love", "I hate", "and")), ["", "", ""])


def test_a_copy_needs_no_file(tmp_path: Path) -> None:
    reward = sentiment(tmp_path)
    (tmp_path / "lexicon.txt").unlink()
    for twin in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):
        assert scores(twin, "hate") == [-2.5]


def test_only_texts_are_scored(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="scores Texts"):
        sentiment(tmp_path)(Vectors(torch.zeros(1, 2)), [""])


def test_a_missing_lexicon_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        Sentiment(str(tmp_path / "nowhere.txt"))


@pytest.mark.parametrize("line", ["love", "love 3.0", "love\tmuch", "love\tnan", ""])
def test_a_line_without_a_valence_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match="line 2 of"):
        sentiment(tmp_path, ["hate\t-2.5", line])


def test_an_empty_lexicon_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="has no words"):
        Sentiment(str(tmp_path / "empty.txt"))


def test_known_valences_of_the_published_lexicon() -> None:
    if not VADER.exists():
        pytest.skip(f"{VADER} is not here")
    strings = ("love", "murder", "good, happy day", "the thing", "self-confident")
    expected = [3.2, -3.7, (1.9 + 2.7) / 2, 0.0, 2.5]
    assert scores(Sentiment(str(VADER)), *strings) == pytest.approx(expected)
