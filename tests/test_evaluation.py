"""Measures against what is worked out by hand; samples depend on nothing but their seed."""

import json
import math
from pathlib import Path

import pytest
import torch

from diffreward.evaluation import Evaluation, as_json, measure, sample, write_samples
from diffreward.pipelines.gaussian_mixture import GaussianMixture, GaussianMixtureDiffusion
from diffreward.record import Measure
from diffreward.samples import Vectors


def test_a_measure_is_mean_and_standard_error_of_what_was_scored() -> None:
    found = measure(torch.tensor([1.0, 2.0, 3.0, torch.nan]))
    assert found == Measure(2.0, pytest.approx(1 / math.sqrt(3)), 3)  # type: ignore[arg-type]
    nothing = measure(torch.tensor([torch.nan]))
    assert math.isnan(nothing.mean) and nothing.n == 0
    assert as_json({"a": nothing}) == {"a": {"mean": None, "error": None, "n": 0}}


def test_a_sample_depends_on_its_number_and_not_on_the_batch() -> None:
    model = GaussianMixtureDiffusion(GaussianMixture([1.0], [[0.0, 1.0]], 0.5), num_steps=5)
    together = sample(model, [""] * 5, seed=3, rows=5).values  # type: ignore[attr-defined]
    apart = sample(model, [""] * 5, seed=3, rows=2).values  # type: ignore[attr-defined]
    later = sample(model, [""] * 2, seed=3, first=3).values  # type: ignore[attr-defined]
    torch.testing.assert_close(apart, together)
    torch.testing.assert_close(later, together[3:])
    assert not torch.allclose(sample(model, [""], seed=4).values, together[:1])  # type: ignore[attr-defined]


def test_samples_are_written_with_prompt_and_scores(tmp_path: Path) -> None:
    scores = {"reward": torch.tensor([0.5, torch.nan, 9.0])}
    write_samples(tmp_path, Vectors(torch.ones(2, 3)), ["a", "b", "not shown"], scores)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index == [
        {"file": "000.txt", "prompt": "a", "scores": {"reward": 0.5}},
        {"file": "001.txt", "prompt": "b", "scores": {"reward": None}},
    ]
    assert (tmp_path / "000.txt").read_text() == "1 1 1"


def test_an_evaluation_that_measures_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="samples"):
        Evaluation(samples=1)
    with pytest.raises(ValueError, match='"reward"'):
        Evaluation(rewards={"reward": lambda samples, prompts: torch.zeros(1)})
