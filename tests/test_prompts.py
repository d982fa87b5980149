"""Reading prompts, and which of them an update gets."""

from collections import Counter
from pathlib import Path

import pytest

from diffreward.evaluation import spread
from diffreward.prompts import prompts_of_update, read_prompts


def test_prompts_are_the_lines_that_are_not_blank(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat \n\n  \na dög\n", encoding="utf-8")
    assert read_prompts(str(file)) == ["a cat", "a dög"]


def test_an_empty_prompt_of_a_list_is_a_prompt() -> None:
    assert read_prompts(["one", "", "two"]) == ["one", "", "two"]


def test_missing_and_empty_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_prompts(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="empty"):
        read_prompts([])


def test_every_epoch_has_every_prompt_once_in_another_order() -> None:
    prompts = [str(i) for i in range(7)]
    drawn = [p for update in range(1, 15) for p in prompts_of_update(prompts, update, 3, seed=0)]
    epochs = [drawn[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == prompts for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_an_update_larger_than_the_list_goes_round() -> None:
    drawn = prompts_of_update(["a", "b"], 1, 5, seed=0)
    assert sorted(Counter(drawn).values()) == [2, 3]


def test_samples_are_spread_over_the_prompts() -> None:
    assert spread(["a", "b"], 5) == ["a", "b", "a", "b", "a"]
    assert spread([str(i) for i in range(100)], 4) == ["0", "25", "50", "75"]
