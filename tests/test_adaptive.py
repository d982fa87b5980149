"""Rewards with a state: what moves it on, what does not, and that a run resumes with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import small_runs
import torch
from colours import redness
from torch import Tensor

from diffreward.adaptive import (
    Adaptive,
    adapting,
    adaptive_parts,
    adaptive_tensors,
    load_adaptive,
)
from diffreward.reward import Constant, WeightedSum
from diffreward.samples import Samples, Vectors

SAMPLES = Vectors(torch.tensor([[1.0], [3.0]]))
PROMPTS = ["a", "b"]


class AboveTheMean(Adaptive):
    """Redness, or the first number, less the sum of the means of all rounds before."""

    def __init__(self, of_images: bool = False) -> None:
        self.of_images = of_images
        self.baseline = torch.zeros(())
        self.kept: list[Tensor] = []

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        scores = redness(samples, prompts) if self.of_images else samples.values[:, 0]
        if self.adapting:
            self.kept.append(scores.detach())
        return scores - self.baseline

    def advance(self) -> None:
        if self.kept:
            self.baseline = self.baseline + torch.cat(self.kept).mean()
        self.kept = []

    def tensors(self) -> dict[str, Tensor]:
        return {"baseline": self.baseline}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.baseline = tensors["baseline"]


def test_only_what_is_scored_in_a_round_moves_the_state_on_and_only_at_its_end() -> None:
    reward = AboveTheMean()
    reward(SAMPLES, PROMPTS)
    assert reward.baseline == 0
    with adapting(reward):
        assert reward(SAMPLES, PROMPTS).tolist() == [1, 3]
        assert reward(SAMPLES, PROMPTS).tolist() == [1, 3]
    assert reward(SAMPLES, PROMPTS).tolist() == [-1, 1]
    with adapting(reward):
        pass
    assert reward.baseline == 2


def test_a_round_that_fails_leaves_the_state_as_it_was() -> None:
    reward = AboveTheMean()
    with pytest.raises(RuntimeError, match="out of memory"), adapting(reward):
        reward(SAMPLES, PROMPTS)
        raise RuntimeError("out of memory")
    assert reward.baseline == 0
    assert not reward.adapting


def test_adaptive_rewards_are_found_wherever_they_are_and_once() -> None:
    inner, other = AboveTheMean(), AboveTheMean()
    nested = WeightedSum([2 * inner + 1.0, Constant(2.0), inner, other], [1.0, 1.0, 1.0, 1.0])
    assert adaptive_parts(nested) == {
        "reward.rewards.0.rewards.0.rewards.0": inner,
        "reward.rewards.3": other,
    }
    with adapting(nested):
        nested(SAMPLES, PROMPTS)
    state = adaptive_tensors(nested)
    assert [float(value) for value in state.values()] == [2, 2]
    fresh = WeightedSum(
        [2 * AboveTheMean() + 1.0, Constant(2.0), Constant(0.0), AboveTheMean()], [1.0] * 4
    )
    load_adaptive(fresh, {**state, "trained.weight": torch.ones(1)})
    assert [float(value) for value in adaptive_tensors(fresh).values()] == [2, 2]


def test_a_run_resumes_with_the_state_of_its_reward(tmp_path: Path) -> None:
    straight, first, second = (AboveTheMean(True) for _ in range(3))
    small_runs.run(tmp_path, "straight", 4, reward=straight)
    small_runs.run(tmp_path, "resumed", 2, reward=first)
    small_runs.run(tmp_path, "resumed", 4, reward=second, resume="latest")
    small_runs.assert_equal_runs(tmp_path / "straight", tmp_path / "resumed")
    assert first.baseline != second.baseline
    curve = [
        line["reward/baseline.0"]
        for line in small_runs.metrics(tmp_path / "straight")
        if line["kind"] == "update"
    ]
    assert len(curve) == 4 and curve[-1] == float(straight.baseline)
    assert torch.equal(straight.baseline, second.baseline)
