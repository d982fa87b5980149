"""Many calls of a slow reward at the same time: for scorers that wait more than they compute.

A judge behind a web service takes seconds for a sample and would take as many for twenty at once.
Rewards are plain functions that return scores; here several of them wait in threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

import torch
from torch import Tensor

from diffreward.reward import Reward, RewardFunction, name_of, score
from diffreward.samples import Samples
from diffreward.serving.outages import Outages


class Asynchronous(Reward):
    """The scores of another reward, asked for in chunks of the batch that are under way together.

    A chunk on which the reward raises, or takes too long, has no score, and the first such failure
    is told. Scores are in the order of the samples, whichever chunk is ready first. A gradient goes
    through if the reward has one; autocast does not reach the threads.

    Args:
        reward: may be called from several threads at once, and must not couple a batch.
        workers: most calls at the same time.
        rows: most samples in a call.
        timeout: seconds for a call; without a limit if not given. What is still running then is
            left to itself, for a thread cannot be stopped.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        reward: Reward | RewardFunction,
        workers: int = 8,
        rows: int = 1,
        timeout: float | None = None,
    ) -> None:
        if workers < 1 or rows < 1:
            raise ValueError(f"workers and rows are at least 1, got {workers} and {rows}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout is greater than 0, got {timeout}")
        self.reward = reward
        self.workers = workers
        self.rows = rows
        self.timeout = timeout
        self._outages = Outages(f"Asynchronous({name_of(reward)})")

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """As every reward.

        Raises:
            RewardError: if no sample has been scored yet, and the reward fails.
        """
        starts = range(0, len(prompts), self.rows)
        chunks = [slice(start, start + self.rows) for start in starts]
        calls = self._all(samples, prompts, chunks)
        parts, failures = [], []
        for chunk, call in zip(chunks, calls, strict=True):
            error = TimeoutError(f"no score after {self.timeout} s")
            found = call.exception() if call.done() else error
            if found is None:
                parts.append(call.result())
            else:
                failures.append(f"{type(found).__name__}: {found}")
                parts.append(torch.full((len(prompts[chunk]),), torch.nan, device=samples.device))
        scores = torch.cat([torch.zeros(0, device=samples.device), *parts])
        self._outages.note(failures, not bool(scores.isnan().all()))
        return scores

    def _all(
        self, samples: Samples, prompts: Sequence[str], chunks: Sequence[slice]
    ) -> list[Future[Tensor]]:
        """A call for each chunk; those that are not done have run out of time."""
        calls: list[Future[Tensor]] = []
        deadlines: dict[Future[Tensor], float] = {}
        for chunk in chunks:
            self._wait(deadlines, self.workers - 1)
            call = _call(self.reward, samples[chunk], prompts[chunk])
            deadlines[call] = time.monotonic() + (self.timeout or threading.TIMEOUT_MAX / 2)
            calls.append(call)
        self._wait(deadlines, 0)
        return calls

    @staticmethod
    def _wait(deadlines: dict[Future[Tensor], float], most: int) -> None:
        """Wait until no more than so many calls are under way, and forget the others."""
        while len(deadlines) > most:
            left = min(deadlines.values()) - time.monotonic()
            wait(deadlines, max(left, 0), FIRST_COMPLETED)
            now = time.monotonic()
            for call in [c for c, deadline in deadlines.items() if c.done() or deadline <= now]:
                del deadlines[call]


def _call(reward: RewardFunction, samples: Samples, prompts: Sequence[str]) -> Future[Tensor]:
    """Call a reward in a thread that does not keep the process alive."""
    future: Future[Tensor] = Future()
    # Both are settings of a thread, and a new one has torch's defaults.
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def run() -> None:
        try:
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                scores = score(reward, samples, prompts)
            future.set_result(scores.to(samples.device))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
