"""The other end of the wire: one HTTP request to a reward server.

By the standard library. A reward server is one's own, so neither proxies nor redirections are
followed: a token goes nowhere but to the address given.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import SplitResult, urlsplit

AGAIN = {408, 425, 429, 500, 502, 503, 504}
"""Statuses after which the same request may get an answer."""


class UnansweredError(Exception):
    """There was no answer; the same request may get one later."""


class RefusedError(Exception):
    """The server does not take the request, and will not take it later."""


@dataclass(frozen=True)
class Client:
    """Speaks to one server. Keeps no connection: a server may come and go between requests.

    Args:
        url: of the server, ``http://host:port`` or ``https://...``, with a path if it has one.
        timeout: seconds to wait for a connection, and for each part of the answer.
        token_variable: environment variable with the token. It is read at each request and kept
            nowhere.

    Raises:
        ValueError: if the URL is none, or holds a password.
    """

    url: str
    timeout: float
    token_variable: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"a reward server is at http://host:port, got {self.url!r}")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("the URL of a reward server has no user, password, query or fragment")
        _ = parts.port  # raises ValueError if it is none

    def get(self, name: str) -> bytes:
        """The content of an address below the URL.

        Raises:
            UnansweredError, RefusedError: with what happened.
        """
        return self._ask("GET", name, None)

    def post(self, name: str, body: bytes) -> bytes:
        """The answer to a body that is sent to an address below the URL.

        Raises:
            UnansweredError, RefusedError: with what happened.
        """
        return self._ask("POST", name, body)

    def _ask(self, method: str, name: str, body: bytes | None) -> bytes:
        parts = urlsplit(self.url)
        token = os.environ.get(self.token_variable, "")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection = _connection(parts, self.timeout)
        try:
            connection.request(method, f"{parts.path.rstrip('/')}/{name}", body, headers)
            response = connection.getresponse()
            return self._content(response)
        except (OSError, HTTPException) as error:
            raise UnansweredError(
                f"{self.url} does not answer ({type(error).__name__}: {error})"
            ) from error
        finally:
            connection.close()

    def _content(self, response: HTTPResponse) -> bytes:
        content = response.read()
        if response.status == 200:
            return content
        text = f"{self.url} answers {response.status}: {_told(content)}"
        if response.status == 401:
            text += f"; it is taken from the environment variable {self.token_variable}"
        raise (UnansweredError if response.status in AGAIN else RefusedError)(text)


def _connection(parts: SplitResult, timeout: float) -> HTTPConnection:
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=timeout)


def _told(content: bytes) -> str:
    """What a server says went wrong, whatever it is."""
    try:
        return str(json.loads(content)["detail"])
    except (ValueError, KeyError, TypeError):
        return repr(content[:200])
