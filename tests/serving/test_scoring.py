"""The scoring side of a server: in rows, one call at a time, each request once, errors by item."""

import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from diffreward.samples import Samples, Texts, Vectors, vectors
from diffreward.serving.protocol import ProtocolError, Request
from diffreward.serving.scoring import OtherRewardError, Scorer


class Picky:
    """Scores a point by its first coordinate; raises on negative ones, knows nothing of 7."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        values = vectors(samples)[:, 0]
        self.batches.append(values.tolist())
        if bool((values < 0).any()):
            raise ArithmeticError(f"negative: {values.min():g}")
        return values.masked_fill(values == 7, torch.nan)


def body(*values: float, identity: str = "here", id: str = "1") -> bytes:
    samples = Vectors(torch.tensor(values, dtype=torch.float32)[:, None])
    return Request(samples, ("",) * len(values), identity, id).encode()


def test_a_batch_is_scored_in_rows() -> None:
    reward = Picky()
    answer = Scorer(reward, "here", 2, "cpu").ask(body(1, 2, 3, 4, 5)).result()
    assert answer.scores == (1, 2, 3, 4, 5) and answer.errors == {} and answer.id == "1"
    assert reward.batches == [[1, 2], [3, 4], [5]]


def test_only_the_items_that_fail_have_no_score() -> None:
    reward = Picky()
    answer = Scorer(reward, "here", 3, "cpu").ask(body(1, 2, 3, 4, -5, 7)).result()
    assert answer.scores == (1, 2, 3, 4, None, None)
    assert answer.errors == {4: "ArithmeticError: negative: -5"}
    assert reward.batches == [[1, 2, 3], [4, -5, 7], [4], [-5], [7]]


def test_a_request_that_comes_again_is_scored_once() -> None:
    reward = Picky()
    scorer = Scorer(reward, "here", 4, "cpu")
    assert scorer.ask(body(1, 2)).result() == scorer.ask(body(1, 2)).result()
    assert reward.batches == [[1, 2]]
    scorer.ask(body(1, 2, id="2")).result()
    assert reward.batches == [[1, 2]] * 2


def test_a_request_that_comes_again_while_it_is_scored_waits_for_that() -> None:
    started, go_on = threading.Event(), threading.Event()
    calls = []

    def slow(samples: Samples, prompts: Sequence[str]) -> Tensor:
        calls.append(len(samples))
        started.set()
        assert go_on.wait(10)
        return vectors(samples)[:, 0]

    scorer = Scorer(slow, "here", 4, "cpu")
    first = scorer.ask(body(1))
    assert started.wait(10)
    again = scorer.ask(body(1))
    go_on.set()
    assert first.result().scores == again.result().scores == (1,)
    assert calls == [1]


def test_the_reward_is_called_by_one_thread_without_graph() -> None:
    seen = set()

    def watched(samples: Samples, prompts: Sequence[str]) -> Tensor:
        seen.add((threading.current_thread(), torch.is_grad_enabled()))
        return vectors(samples)[:, 0]

    scorer = Scorer(watched, "here", 4, "cpu")
    for future in [scorer.ask(body(i)) for i in range(5)]:
        future.result()
    ((thread, grad),) = seen
    assert thread is not threading.current_thread() and not grad


def test_a_request_for_another_reward_gets_no_score() -> None:
    reward = Picky()
    with pytest.raises(OtherRewardError, match="as here; the request is for there"):
        Scorer(reward, "here", 4, "cpu").ask(body(1, identity="there")).result()
    with pytest.raises(ProtocolError):
        Scorer(reward, "here", 4, "cpu").ask(b"nonsense").result()
    assert reward.batches == []


def test_samples_of_a_wrong_kind_are_told_for_each() -> None:
    request = Request(Texts(("a", "b")), ("", ""), "here", "1")
    answer = Scorer(Picky(), "here", 4, "cpu").ask(request.encode()).result()
    assert answer.scores == (None, None)
    assert "this reward scores Vectors; the model produced Texts" in answer.errors[0]
