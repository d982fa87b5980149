"""Chunks under way together: order, gradient and grad mode as ever, failures as no score."""

import threading
import time
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.reward import RewardError
from diffreward.rewards.asynchronous import Asynchronous
from diffreward.rewards.jpeg import JpegCompressibility
from diffreward.samples import Images, Samples, Vectors, vectors


def points(*values: float) -> Vectors:
    return Vectors(torch.tensor(values, dtype=torch.float32)[:, None])


def first(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return vectors(samples)[:, 0]


def test_scores_are_in_the_order_of_the_samples_whichever_is_ready_first() -> None:
    def late_first(samples: Samples, prompts: Sequence[str]) -> Tensor:
        (value,) = first(samples, prompts)
        time.sleep(0.02 * (4 - float(value)))
        return value[None] + len(prompts[0])

    scores = Asynchronous(late_first, workers=4)(points(0, 1, 2, 3), ["", "a", "", "ab"])
    assert scores.tolist() == [0, 2, 2, 5]


def test_chunks_are_under_way_together_but_not_more_than_allowed() -> None:
    meeting = threading.Barrier(3, timeout=10)
    now, most, lock = 0, 0, threading.Lock()

    def counted(samples: Samples, prompts: Sequence[str]) -> Tensor:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        meeting.wait()
        with lock:
            now -= 1
        return first(samples, prompts)

    scores = Asynchronous(counted, workers=3, rows=2)(points(*range(12)), [""] * 12)
    assert scores.tolist() == list(range(12))
    assert most == 3


def test_gradients_and_grad_mode_reach_the_threads() -> None:
    modes = []

    def cubed(samples: Samples, prompts: Sequence[str]) -> Tensor:
        modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return first(samples, prompts) ** 3

    values = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
    reward = Asynchronous(cubed, rows=2)
    (gradient,) = torch.autograd.grad(reward(Vectors(values), [""] * 3).sum(), values)
    assert gradient.flatten().tolist() == [3, 12, 27]
    with torch.no_grad():
        assert not reward(Vectors(values), [""] * 3).requires_grad
    with torch.inference_mode():
        reward(points(1), [""])
    assert modes == [(True, False)] * 2 + [(False, False)] * 2 + [(False, True)]


def test_a_chunk_that_fails_has_no_score_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def picky(samples: Samples, prompts: Sequence[str]) -> Tensor:
        if prompts[0] == "bad":
            raise ConnectionError("quota used up")
        return first(samples, prompts)

    reward = Asynchronous(picky)
    for _ in range(2):
        scores = reward(points(1, 2, 3), ["", "bad", ""])
        assert scores.isnan().tolist() == [False, True, False]
    (told,) = caplog.records
    assert "Asynchronous(picky)" in told.getMessage()
    assert "ConnectionError: quota used up" in told.getMessage()


def test_a_reward_that_has_never_worked_stops_the_run() -> None:
    with pytest.raises(RewardError, match="this reward scores Images; the model produced Vectors"):
        Asynchronous(JpegCompressibility())(points(1, 2), ["", ""])


def test_a_call_that_takes_too_long_has_no_score_and_keeps_nobody_waiting() -> None:
    forever = threading.Event()

    def stuck(samples: Samples, prompts: Sequence[str]) -> Tensor:
        if prompts[0] == "stuck":
            forever.wait(30)
        return first(samples, prompts)

    start = time.monotonic()
    prompts = ["stuck", "", "stuck", "", ""]
    scores = Asynchronous(stuck, workers=2, timeout=0.3)(points(*range(5)), prompts)
    assert scores.isnan().tolist() == [True, False, True, False, False]
    assert time.monotonic() - start < 5
    forever.set()


def test_the_time_of_a_call_begins_when_it_begins() -> None:
    def slow(samples: Samples, prompts: Sequence[str]) -> Tensor:
        time.sleep(0.1)
        return first(samples, prompts)

    scores = Asynchronous(slow, workers=1, timeout=0.4)(points(*range(6)), [""] * 6)
    assert scores.tolist() == list(range(6))


def test_the_contract_is_kept() -> None:
    images = Images(torch.rand(5, 3, 16, 16, generator=stream(0)))
    reward = Asynchronous(JpegCompressibility(), workers=2, rows=2)
    check_reward(reward, images, [""] * 5)
    assert reward(images[:0], []).shape == (0,)


@pytest.mark.parametrize("settings", [{"workers": 0}, {"rows": 0}, {"timeout": 0.0}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        Asynchronous(first, **settings)  # type: ignore[arg-type]
