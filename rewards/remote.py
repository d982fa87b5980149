"""A reward that is computed elsewhere: in another environment, process or machine.

The server is ``diffreward serve --reward ...``, or whatever speaks `diffreward.serving.protocol`.
A failure is never a reward: what the server does not score has no score, and training leaves it
out. A server that is killed in the middle of a run costs retries and such samples, not the run.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from diffreward.reward import Reward, RewardError
from diffreward.samples import Samples
from diffreward.serving.client import Client, RefusedError, UnansweredError
from diffreward.serving.outages import Outages
from diffreward.serving.protocol import (
    TOKEN_VARIABLE,
    VERSION,
    Answer,
    ProtocolError,
    Request,
    Spec,
)

LONGEST_PAUSE = 30.0
"""Seconds between two attempts, at most."""


class RemoteReward(Reward):
    """The scores of the reward that a server serves. Not differentiable.

    Samples of every kind travel bit for bit, whatever device they are on. The server is first
    spoken to at the first call. When it does not answer, a request is sent again, with pauses that
    double; a server that has the request already, and is still scoring it, does not score it
    twice. When all attempts are used up, the rest of the batch has no score, and later calls make
    one attempt until the server answers again. A server that comes back with another reward, or
    with other settings, is refused.

    Args:
        url: of the server, ``http://host:port``.
        rows: most samples in a request.
        timeout: seconds to wait for an answer; the first one includes loading the model.
        retries: attempts after the first one.
        pause: seconds before the first retry; doubled for each one, up to 30, and varied at random
            so that many processes do not come back at once.
        token_variable: environment variable that holds the server's token, if it wants one. The
            token itself is part of no configuration and of no copy.

    Raises:
        ValueError: if the URL is none, or a number is out of range.
    """

    def __init__(
        self,
        url: str,
        rows: int = 16,
        timeout: float = 60.0,
        retries: int = 3,
        pause: float = 1.0,
        token_variable: str = TOKEN_VARIABLE,
    ) -> None:
        if rows < 1:
            raise ValueError(f"rows is at least 1, got {rows}")
        if not timeout > 0 or retries < 0 or pause < 0:
            raise ValueError(
                f"timeout is greater than 0, retries and pause are at least 0; got {timeout}, "
                f"{retries} and {pause}"
            )
        self.client = Client(url, timeout, token_variable)
        self.rows = rows
        self.retries = retries
        self.pause = pause
        self._spec: Spec | None = None
        self._down = False
        self._outages = Outages(f"RemoteReward({url})")

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """As every reward.

        Raises:
            RewardError: if the server has given no score yet, and fails.
        """
        scores: list[float | None] = []
        failures: list[str] = []
        try:
            for first in range(0, len(prompts), self.rows):
                rows = slice(first, first + self.rows)
                answer = self._answer(samples[rows], tuple(prompts[rows]))
                scores += answer.scores
                failures += answer.errors.values()
        except (UnansweredError, RefusedError, ProtocolError) as error:
            self._down = True
            failures.append(str(error))
        self._outages.note(failures, any(score is not None for score in scores))
        scores += [None] * (len(prompts) - len(scores))
        known = [torch.nan if score is None else score for score in scores]
        return torch.tensor(known, dtype=torch.float32, device=samples.device)

    def __getstate__(self) -> dict[str, Any]:
        # A copy, in another process perhaps, is to find out by itself whom it speaks to.
        fresh = {"_spec": None, "_down": False, "_outages": Outages(self._outages.name)}
        return {**self.__dict__, **fresh}

    def _answer(self, samples: Samples, prompts: tuple[str, ...]) -> Answer:
        if self._spec is None:
            self._spec = self._handshake()
        request = Request(samples, prompts, self._spec.identity, uuid.uuid4().hex)
        body = request.encode()
        answer = Answer.decode(self._insist(lambda: self.client.post("score", body)), request)
        self._down = False
        return answer

    def _handshake(self) -> Spec:
        spec = Spec.decode(self._insist(lambda: self.client.get("spec")))
        if spec.protocol != VERSION:
            raise RewardError(
                f"the server at {self.client.url} (diffreward {spec.diffreward}) speaks protocol "
                f"{spec.protocol}, this side {VERSION}; install the same diffreward on both sides"
            )
        return spec

    def _insist(self, ask: Callable[[], bytes]) -> bytes:
        """Ask until there is an answer or a refusal, or patience is at its end."""
        for pause in self._pauses():
            try:
                return ask()
            except UnansweredError:
                time.sleep(pause)
        return ask()

    def _pauses(self) -> Iterator[float]:
        """Seconds before each retry; none while the server is known to be away."""
        # Seeds stay out of this: how long a server is away changes no random number of a run.
        source = random.SystemRandom()
        for attempt in range(0 if self._down else self.retries):
            yield min(self.pause * 2**attempt, LONGEST_PAUSE) * source.uniform(0.5, 1.0)
