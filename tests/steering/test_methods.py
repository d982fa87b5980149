"""The settings: when they score, what they refuse, and what they stand for."""

import pytest
import torch

from diffreward.steering import BestOfN, FKSteering
from diffreward.steering.potentials import difference, maximum, total
from diffreward.steering.resampling import ssp, systematic


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"start": 0.2, "stop": 0.8, "interval": 20}, [20, 40, 60, 80]),  # as FK's released code
        ({"start": 0.0, "stop": 1.0, "interval": 25}, [0, 25, 50, 75]),
        ({"start": 1.0, "stop": 1.0}, []),
        ({"interval": 0}, []),
    ],
)
def test_scored_steps_of_a_hundred(settings: dict[str, float], steps: list[int]) -> None:
    assert list(FKSteering(**settings).scored_steps(100)) == steps


def test_shares_of_the_steps_do_not_suffer_from_binary_digits() -> None:
    # 0.07 * 100 = 7.000000000000001 and 0.29 * 100 = 28.999999999999996 in binary.
    assert list(FKSteering(interval=22, start=0.07, stop=0.29).scored_steps(100)) == [7, 29]


@pytest.mark.parametrize(
    "wrong",
    [
        {"particles": 0},
        {"interval": -1},
        {"start": 0.9, "stop": 0.1},
        {"stop": 20.0},
        {"ess_threshold": 1.5},
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got "):
        FKSteering(**wrong)


def test_names_and_functions_are_interchangeable() -> None:
    assert FKSteering().potential_function() is difference
    assert FKSteering(potential=maximum).potential_function() is maximum
    assert FKSteering().scheme() is systematic
    assert FKSteering(resampling=ssp).scheme() is ssp


def test_best_of_n_scores_and_compares_finished_samples_only() -> None:
    settings = BestOfN(7).settings()
    assert settings.particles == 7 and settings.ess_threshold == 0
    assert len(settings.scored_steps(50)) == 0


def test_potentials() -> None:
    score, reward = torch.tensor([-3.0, 2.0]), torch.tensor([-1.0, -1.0])
    assert difference(score, reward).tolist() == [-1.0, -1.0]
    assert maximum(score, reward).tolist() == [-1.0, 2.0]
    assert total(score, reward).tolist() == [-4.0, 1.0]
