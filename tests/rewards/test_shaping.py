import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffreward.conformance import check_reward
from diffreward.evaluation import write_samples
from diffreward.rewards.shaping import PAR, Clipped
from diffreward.samples import Samples, Vectors

PROMPTS = ["a cat", "a dog", "a cat", "a dog"]
SCORES = torch.tensor([0.0, 1.0, -2.0, 40.0])
REFERENCES = {"a cat": [0.0, 1.0, -1.0], "a dog": [3.0]}


def first(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return samples.values[:, 0]


def shaped(reward: Any, scores: Tensor = SCORES) -> Tensor:
    found: Tensor = reward(Vectors(scores[:, None]), PROMPTS[: len(scores)])
    return found


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_par_is_the_mean_probability_of_beating_a_reference_of_the_prompt() -> None:
    expected = [
        (0.5 + sigmoid(-1) + sigmoid(1)) / 3,
        sigmoid(-2),
        (sigmoid(-2) + sigmoid(-3) + sigmoid(-1)) / 3,
        1.0,
    ]
    assert shaped(PAR(first, REFERENCES)).tolist() == pytest.approx(expected, rel=1e-6)


def test_one_number_is_the_reference_of_all_prompts() -> None:
    expected = [sigmoid(2 * (r - 1)) for r in SCORES.tolist()]
    assert shaped(PAR(first, 1.0, scale=2.0)).tolist() == pytest.approx(expected, rel=1e-6)
    assert shaped(PAR(first, 1, scale=2.0)).tolist() == pytest.approx(expected, rel=1e-6)


def test_par_keeps_the_contract_its_range_and_the_order_within_a_prompt() -> None:
    reward = PAR(first, REFERENCES)
    check_reward(reward, Vectors(SCORES[:, None]), PROMPTS)
    found = shaped(reward, torch.tensor([-1e30, 5.0, 1e30, 6.0]))
    assert found[0] == 0 and found[2] == 1
    assert found[1] < found[3]


def test_par_rises_fastest_at_a_reference() -> None:
    """The slope of sigmoid is s (1 - s): 1/4 at most."""
    scores = torch.tensor([0.0, 3.0, -2.0, 4.0], requires_grad=True)
    shaped(PAR(first, {"a cat": [0.0], "a dog": [3.0]}), scores).sum().backward()
    assert scores.grad is not None
    expected = [0.25, 0.25, sigmoid(-2) * sigmoid(2), sigmoid(1) * sigmoid(-1)]
    assert scores.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_no_score_is_no_shaped_score() -> None:
    scores = torch.tensor([0.0, math.nan, math.inf, 0.0])
    for reward in (PAR(first, REFERENCES), Clipped(first, -1, 1)):
        assert shaped(reward, scores).isnan().tolist() == [False, True, True, False]


def test_what_an_evaluation_writes_is_a_file_of_references(tmp_path: Path) -> None:
    prompts = ["a cat", "a dog", "a cat", "a cat", "a cat"]
    scores = torch.tensor([0.0, 3.0, math.nan, 1.0, -1.0])
    measures = {"reward": scores, "other": scores + 1}
    write_samples(tmp_path, Vectors(scores[:, None]), prompts, measures)
    found = shaped(PAR(first, str(tmp_path / "index.json")))
    assert torch.equal(found, shaped(PAR(first, REFERENCES)))


def test_a_prompt_without_references_is_named() -> None:
    with pytest.raises(ValueError, match=r"prompt 'a dog'; there are some for 1 prompts.*'a cat'"):
        shaped(PAR(first, {"a cat": [0.0]}))
    with pytest.raises(ValueError, match=r"no reference score for \['a dog'\]"):
        PAR(first, {"a cat": [0.0], "a dog": []})
    with pytest.raises(ValueError, match="no reference score for any prompt"):
        PAR(first, {})
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.json"):
        PAR(first, "nowhere.json")
    with pytest.raises(ValueError, match="scale is above 0, got 0"):
        PAR(first, 0.0, scale=0)


def test_a_clipped_reward_stays_in_its_interval_and_pulls_only_there() -> None:
    scores = torch.tensor([-3.0, -0.5, 0.5, 3.0], requires_grad=True)
    found = shaped(Clipped(first, -1.0, 1.0), scores)
    assert found.tolist() == [-1.0, -0.5, 0.5, 1.0]
    found.sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    check_reward(Clipped(first, -1.0, 1.0), Vectors(SCORES[:, None]), PROMPTS)


def test_one_side_may_stay_open() -> None:
    assert shaped(Clipped(first, high=0.5)).tolist() == [0.0, 0.5, -2.0, 0.5]
    assert shaped(Clipped(first, low=0.5)).tolist() == [0.5, 1.0, 0.5, 40.0]


@pytest.mark.parametrize("wrong", [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0)])
def test_an_interval_has_room(wrong: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="low is below high"):
        Clipped(first, *wrong)
