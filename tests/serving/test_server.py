"""The server over HTTP: who is let in, what is read, what is told."""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from diffreward.samples import Samples, Vectors, vectors
from diffreward.serving.protocol import VERSION, Request, Spec

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from served import served

from diffreward.serving.server import Serving, application, serve


def first(samples: Samples, prompts: Sequence[str]) -> Tensor:
    """The first coordinate; fails on negative ones."""
    values = vectors(samples)[:, 0]
    if bool((values < 0).any()):
        raise ArithmeticError("negative")
    return values


def asked(url: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and content, without a proxy that the environment may name."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, body, headers), timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def body(*values: float, identity: str) -> bytes:
    samples = Vectors(torch.tensor(values, dtype=torch.float32)[:, None])
    return Request(samples, ("",) * len(values), identity, "1").encode()


def spec(url: str, **headers: str) -> Spec:
    return Spec.decode(asked(f"{url}/spec", **headers)[1].encode())


def test_a_server_says_what_it_is_and_scores() -> None:
    with served(first) as url:
        said = spec(url)
        assert (said.protocol, said.reward) == (VERSION, "first")
        assert {"Images", "Videos", "Audio", "Texts", "Tokens"} <= set(said.kinds)
        status, text = asked(f"{url}/score", body(1, -2, identity=said.identity))
    assert status == 200
    assert json.loads(text)["scores"] == [1, None]
    assert json.loads(text)["errors"] == {"1": "ArithmeticError: negative"}
    assert "Traceback" not in text and ".py" not in text


def test_another_reward_or_other_settings_are_another_identity() -> None:
    def second(samples: Samples, prompts: Sequence[str]) -> Tensor:
        return vectors(samples)[:, 1]

    with served(first, description="a") as one, served(first, description="a") as same:
        assert spec(one) == spec(same)
        with served(second, description="a") as other, served(first, description="b") as set_up:
            assert len({spec(url).identity for url in (one, other, set_up)}) == 3
            status, text = asked(f"{other}/score", body(1, identity=spec(one).identity))
    assert status == 409 and "scores with second" in text


@pytest.mark.parametrize("shown", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "key"}])
def test_without_the_token_nothing_is_told(shown: dict[str, str]) -> None:
    with served(first, token="key") as url:
        for path, content in (("spec", None), ("score", b"")):
            status, text = asked(f"{url}/{path}", content, **shown)
            assert status == 401 and "first" not in text
        assert spec(url, Authorization="Bearer key").reward == "first"


def test_no_more_is_read_than_the_limit() -> None:
    with served(first, megabytes=1) as url:
        large = body(*range(300_000), identity=spec(url).identity)
        status, text = asked(f"{url}/score", large)
        assert status == 413 and "up to 1 MB" in text
        assert asked(f"{url}/score", body(1, identity=spec(url).identity))[0] == 200


def test_what_is_no_request_is_answered_without_a_traceback() -> None:
    with served(first) as url:
        status, text = asked(f"{url}/score", b"\x80\x04nonsense")
        assert status == 400 and "Traceback" not in text
        assert asked(f"{url}/docs")[0] == 404


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "a.example"])
def test_others_are_not_served_without_a_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFREWARD_TOKEN", raising=False)
    with pytest.raises(ValueError, match=r"everybody on the network.*DIFFREWARD_TOKEN"):
        serve(first, Serving(host=host), "")


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="rows is at least 1, got 0"):
        Serving(rows=0)
    with pytest.raises(ValueError, match="1 to 65535, got 70000"):
        Serving(port=70_000)


def test_without_fastapi_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ImportError, match=r"diffreward\[serve\]"):
        application(first, Serving(), "")
