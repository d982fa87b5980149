"""The part of a server that scores: one call of the reward at a time, and each request once."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from diffreward.reward import RewardFunction, name_of, score
from diffreward.samples import Samples
from diffreward.serving.protocol import Answer, Request

LOG = logging.getLogger("diffreward.serving")

REMEMBERED = 256
"""Requests whose answers are kept for those that ask again."""


class OtherRewardError(ValueError):
    """A request that means another reward than the one served."""


class Scorer:
    """Answers requests with the scores of a reward, in one thread, in the order they come.

    A request that comes again, because the run has lost the connection or its patience, gets the
    answer to the first one, also if that is still being scored. The samples that a reward fails on
    are told apart from the others by scoring them one by one.

    Args:
        reward: without a state that changes, and not coupled over a batch.
        identity: of the reward; requests for another one are refused.
        rows: most samples in one call of the reward.
        device: where the samples are brought before.
    """

    def __init__(
        self, reward: RewardFunction, identity: str, rows: int, device: torch.device | str
    ) -> None:
        self.reward = reward
        self.identity = identity
        self.rows = rows
        self.device = device
        # With a thread of its own the reward finds torch's settings by thread as it left them.
        self._thread = ThreadPoolExecutor(1, "reward")
        self._asked: OrderedDict[bytes, Future[Answer]] = OrderedDict()

    def ask(self, body: bytes) -> Future[Answer]:
        """Line a request up to be scored; not to be called from several threads.

        Args:
            body: an encoded `Request`.

        Returns:
            The answer to come. It raises `ProtocolError` if the body is no request, and
            `OtherRewardError` if another reward is meant.
        """
        key = hashlib.blake2b(body).digest()
        if key not in self._asked:
            self._asked[key] = self._thread.submit(self._answer, body)
        if len(self._asked) > REMEMBERED:
            self._asked.popitem(last=False)
        return self._asked[key]

    def _answer(self, body: bytes) -> Answer:
        request = Request.decode(body)
        if request.identity != self.identity:
            raise OtherRewardError(
                f"this server scores with {name_of(self.reward)}, as {self.identity}; the request "
                f"is for {request.identity}"
            )
        start = time.monotonic()
        samples, prompts = request.samples.to(self.device), request.prompts
        scores: list[float | None] = []
        errors: dict[int, str] = {}
        for first in range(0, len(prompts), self.rows):
            rows = slice(first, first + self.rows)
            found, failed = self._scores(samples[rows], prompts[rows])
            scores += found
            errors |= {first + row: text for row, text in failed.items()}
        seconds, missing = time.monotonic() - start, scores.count(None)
        LOG.info("%d samples in %.2f s, %d without a score", len(scores), seconds, missing)
        return Answer(request.id, tuple(scores), errors)

    def _scores(
        self, samples: Samples, prompts: Sequence[str]
    ) -> tuple[list[float | None], dict[int, str]]:
        """The scores, None = no score, and what went wrong by row."""
        try:
            with torch.no_grad():
                values = score(self.reward, samples, prompts).tolist()
        except Exception as error:
            if len(prompts) > 1:
                LOG.warning("a batch of %d failed (%s); one by one", len(prompts), error)
                rows = [slice(i, i + 1) for i in range(len(prompts))]
                parts = [self._scores(samples[row], prompts[row]) for row in rows]
                failed = {i: part[1][0] for i, part in enumerate(parts) if part[1]}
                return [part[0][0] for part in parts], failed
            LOG.exception("no score for a sample of the prompt %r", prompts[0])
            # The log has the traceback; whoever asks gets to know what happened, not the code.
            return [None], {0: f"{type(error).__name__}: {error}"[:500]}
        return [value if value == value else None for value in values], {}
