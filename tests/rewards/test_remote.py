"""A remote reward gives the scores of the served one, or none; never others."""

import copy
import logging
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from torch import Tensor

from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.reward import RewardError
from diffreward.rewards.jpeg import JpegCompressibility
from diffreward.rewards.remote import RemoteReward
from diffreward.samples import Images, Samples, Texts, Vectors, texts, vectors
from diffreward.serving.protocol import VERSION, Spec

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from served import free_port, served


def first(samples: Samples, prompts: Sequence[str]) -> Tensor:
    """The first coordinate plus the length of the prompt; fails on negative ones."""
    values = vectors(samples)[:, 0]
    if bool((values < 0).any()):
        raise ArithmeticError("negative")
    return values + torch.tensor([len(prompt) for prompt in prompts])


def points(*values: float) -> Vectors:
    return Vectors(torch.tensor(values, dtype=torch.float32)[:, None])


def remote(url: str, **settings: object) -> RemoteReward:
    return RemoteReward(url, **{"pause": 0.01, "timeout": 10.0, **settings})  # type: ignore[arg-type]


def test_scores_are_those_of_the_served_reward() -> None:
    images = Images(torch.rand(5, 3, 32, 32, generator=stream(0)))
    with served(JpegCompressibility(), rows=2) as url:
        reward = remote(url, rows=3)
        assert torch.equal(reward(images, [""] * 5), JpegCompressibility()(images, [""] * 5))
        check_reward(reward, images, ["a", "b", "a", "b", "a"])
        assert reward(images[:0], []).shape == (0,)


def test_strings_and_prompts_arrive() -> None:
    def length(samples: Samples, prompts: Sequence[str]) -> Tensor:
        pairs = zip(texts(samples), prompts, strict=True)
        return torch.tensor([10.0 * len(text) + len(prompt) for text, prompt in pairs])

    with served(length) as url:
        assert remote(url)(Texts(("a\n", "")), ["ä", "bc"]).tolist() == [21, 2]


def test_scores_carry_no_gradient() -> None:
    values = torch.ones(2, 1, requires_grad=True)
    with served(first) as url:
        assert not remote(url)(Vectors(values), ["", ""]).requires_grad


def test_items_that_fail_have_no_score_and_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with served(first) as url:
        reward = remote(url)
        for _ in range(2):
            assert reward(points(1, -1, 3), [""] * 3).isnan().tolist() == [False, True, False]
        assert reward(points(1), [""]).tolist() == [1]
        reward(points(1, -1), ["", ""])
    told = [record.getMessage() for record in caplog.records if record.name == "diffreward.rewards"]
    assert len(told) == 3
    assert "no score for some samples" in told[0] and "ArithmeticError: negative" in told[0]
    assert "all samples get scores again" in told[1]


def test_an_address_where_nobody_is_stops_at_once() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RewardError, match=f"no score yet: {url} does not answer.*refused"):
        remote(url)(points(1), [""])


def test_a_reward_for_another_medium_stops_at_once() -> None:
    with (
        served(JpegCompressibility()) as url,
        pytest.raises(RewardError, match="this reward scores Images; the model produced Vectors"),
    ):
        remote(url)(points(1, 2), ["", ""])


def test_a_server_that_goes_away_costs_scores_and_comes_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = free_port()
    with served(first, port) as url:
        reward = remote(url, rows=2, retries=2)
        assert reward(points(1, 2, 3), [""] * 3).tolist() == [1, 2, 3]
    for _ in range(3):
        assert reward(points(1, 2, 3), [""] * 3).isnan().all()
    with served(first, port):
        assert reward(points(1, 2, 3), [""] * 3).tolist() == [1, 2, 3]
    told = [record for record in caplog.records if record.name == "diffreward.rewards"]
    assert [record.levelno for record in told] == [logging.WARNING] * 2


def test_another_reward_at_the_same_address_gives_no_score() -> None:
    def other(samples: Samples, prompts: Sequence[str]) -> Tensor:
        return 100 * vectors(samples)[:, 0]

    port = free_port()
    with served(first, port) as url:
        reward = remote(url)
        reward(points(1), [""])
    with served(other, port):
        assert reward(points(1, 2), ["", ""]).isnan().all()
        assert remote(url)(points(1, 2), ["", ""]).tolist() == [100, 200]


def test_the_token_comes_from_the_environment_and_stays_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with served(first, token="sesame") as url:
        monkeypatch.setenv("JUDGE", "sesame")
        reward = remote(url, token_variable="JUDGE")
        assert reward(points(1), [""]).tolist() == [1]
        assert b"sesame" not in pickle.dumps(reward) and "sesame" not in str(vars(reward))
        monkeypatch.setenv("JUDGE", "wrong")
        with pytest.raises(RewardError, match=r"401.*environment variable JUDGE"):
            remote(url, token_variable="JUDGE")(points(1), [""])


def test_copies_speak_for_themselves() -> None:
    with served(first) as url:
        reward = remote(url)
        reward(points(1), [""])
        for twin in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):
            assert twin(points(2), [""]).tolist() == [2]
        twin = copy.deepcopy(reward)
    assert reward(points(1), [""]).isnan().all()
    with pytest.raises(RewardError, match="no score yet"):
        twin(points(1), [""])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "127.0.0.1:8765"}, "http://host:port"),
        ({"url": "ftp://a.example"}, "http://host:port"),
        ({"url": "http://me:secret@a.example"}, "no user, password"),
        ({"url": "http://a.example:port"}, "port"),
        ({"rows": 0}, "rows is at least 1"),
        ({"timeout": 0.0}, "timeout is greater than 0"),
        ({"retries": -1}, "at least 0"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        remote(**{"url": "http://a.example", **settings})  # type: ignore[arg-type]


CUT_OFF = b'{"id": "'

Answers = Callable[[bytes], tuple[int, bytes]]


@pytest.fixture
def strange_server() -> Iterator[Callable[[Spec, Answers], str]]:
    """A server that says what it is told to say."""
    servers: list[HTTPServer] = []

    def start(spec: Spec, answers: Answers) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._tell(200, spec.encode())

            def do_POST(self) -> None:
                self._tell(*answers(self.rfile.read(int(self.headers["Content-Length"]))))

            def _tell(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content) + (content == CUT_OFF)))
                self.send_header("Location", "http://127.0.0.1:9")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


SPEC = Spec(VERSION, "0", "strange", "x", ())


def test_a_server_of_another_version_is_refused_with_what_to_do(
    strange_server: Callable[[Spec, Answers], str],
) -> None:
    url = strange_server(Spec(VERSION + 1, "9.9", "new", "x", ()), lambda body: (200, b""))
    with pytest.raises(RewardError, match=r"\(diffreward 9.9\) speaks protocol 2.*install the sam"):
        remote(url)(points(1), [""])


def test_busy_answers_are_tried_again_with_the_same_request(
    strange_server: Callable[[Spec, Answers], str],
) -> None:
    bodies = []

    def answers(body: bytes) -> tuple[int, bytes]:
        bodies.append(body)
        return 503, b"busy"

    with pytest.raises(RewardError, match=r"503.*busy"):
        remote(strange_server(SPEC, answers), retries=3)(points(1), [""])
    assert len(bodies) == 4 and len(set(bodies)) == 1


@pytest.mark.parametrize(
    ("status", "content", "attempts"),
    [
        (200, b'{"id": "stolen", "scores": [1.0], "errors": {}}', 1),
        (200, b"<html>Welcome!</html>", 1),
        (200, CUT_OFF, 4),
        (400, b'{"detail": "no"}', 1),
        (301, b"", 1),
    ],
)
def test_strange_answers_are_no_scores(
    strange_server: Callable[[Spec, Answers], str], status: int, content: bytes, attempts: int
) -> None:
    asked = []

    def answers(body: bytes) -> tuple[int, bytes]:
        asked.append(body)
        return status, content

    reward = remote(strange_server(SPEC, answers), timeout=1.0)
    reward._outages.proven = True
    assert reward(points(1), [""]).isnan().all()
    assert len(asked) == attempts


def test_a_slow_answer_is_waited_for_and_scored_once() -> None:
    calls, go_on = [], threading.Event()

    def slow(samples: Samples, prompts: Sequence[str]) -> Tensor:
        calls.append(len(samples))
        go_on.wait(0.5)
        return vectors(samples)[:, 0]

    with served(slow) as url:
        assert remote(url, timeout=0.2, retries=5)(points(3), [""]).tolist() == [3]
    assert calls == [1]
