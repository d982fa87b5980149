import math

import pytest

from diffreward.conformance import check_reward
from diffreward.rewards.text_form import Length, Pattern
from diffreward.samples import Texts

TEXTS = Texts(("Red, red and reddish", "", "blue\nred"))
PROMPTS = [""] * 3


def test_a_pattern_is_there_or_counted() -> None:
    assert Pattern("red")(TEXTS, PROMPTS).tolist() == [1, 0, 1]
    assert Pattern(r"(?i)\bred\b", count=True)(TEXTS, PROMPTS).tolist() == [2, 0, 1]
    assert Pattern(r"(?s)\Ablue.*\Z")(TEXTS, PROMPTS).tolist() == [0, 0, 1]


def test_what_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        Pattern("(")


def test_length_costs_what_is_outside_the_range() -> None:
    assert Length(5, 8)(TEXTS, PROMPTS).tolist() == [-12, -5, 0]
    assert Length(3, unit="words")(TEXTS, PROMPTS).tolist() == [0, -3, -1]
    assert Length(most=10)(TEXTS, PROMPTS).tolist() == [-10, 0, 0]


def test_a_range_without_a_length_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 5 and at most 4"):
        Length(5, 4)


@pytest.mark.parametrize("reward", [Pattern("red"), Length(4, 8)], ids=["pattern", "length"])
def test_they_keep_the_contract(reward: Pattern | Length) -> None:
    check_reward(reward, TEXTS, PROMPTS)
    assert not any(math.isnan(score) for score in reward(TEXTS, PROMPTS).tolist())
