"""A server that is killed in the middle of a run costs masked samples: no wrong score, no run."""

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import small_runs
import torch
from colours import redness
from torch import Tensor

from diffreward.rewards.remote import RemoteReward
from diffreward.samples import Images, Samples

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from served import free_port, served

ROOT = Path(__file__).resolve().parents[2]
AWAY = range(2, 5)
"""Calls of the reward that find no server: those of some updates and of an evaluation."""


def numbered(
    before: Callable[[int], object], reward: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """The same reward, told before each call which one it is."""
    calls = iter(range(1000))

    def redness(samples: Samples, prompts: Sequence[str]) -> Tensor:
        before(next(calls))
        return reward(samples, prompts)

    return redness


def test_a_run_without_its_server_for_a_while_is_that_run_with_those_scores_masked(
    tmp_path: Path,
) -> None:
    port, server, away = free_port(), ExitStack(), False

    def masked(samples: Samples, prompts: Sequence[str]) -> Tensor:
        return redness(samples, prompts) * (torch.nan if away else 1.0)

    def leave(number: int) -> None:
        nonlocal away
        away = number in AWAY

    def stop_and_start(number: int) -> None:
        if number == AWAY.start:
            server.close()
        elif number in (0, AWAY.stop):
            server.enter_context(served(redness, port))

    small_runs.run(tmp_path, "local", reward=numbered(leave, masked))
    remote = RemoteReward(f"http://127.0.0.1:{port}", rows=2, retries=1, pause=0.01)
    with server:
        small_runs.run(tmp_path, "remote", reward=numbered(stop_and_start, remote))
    small_runs.assert_equal_runs(tmp_path / "local", tmp_path / "remote")
    updates = [line for line in small_runs.metrics(tmp_path / "remote") if "unscored" in line]
    assert [line["unscored"] for line in updates] == [0, 9, 9, 0]


def test_a_server_that_dies_in_a_batch_leaves_its_first_scores_and_no_others() -> None:
    pixels = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    server = ExitStack()

    def dies_third(samples: Samples, prompts: Sequence[str]) -> Tensor:
        if "third" in prompts:
            threading.Thread(target=server.close).start()
            time.sleep(0.5)
        return redness(samples, prompts)

    url = server.enter_context(served(dies_third))
    reward = RemoteReward(url, rows=2, retries=1, pause=0.01)
    prompts = ["", "", "second", "", "third", ""]
    scores = reward(Images(pixels), prompts)
    assert scores.isnan().tolist() == [False] * 4 + [True] * 2
    assert torch.equal(scores[:4], redness(Images(pixels[:4]), prompts[:4]))


@pytest.mark.slow
def test_a_run_survives_a_server_that_is_killed_at_random_moments(tmp_path: Path) -> None:
    port, moments = free_port(), random.Random(0)
    command = [sys.executable, "-m", "diffreward.serving", f"{ROOT}/tests/colours.py:redness"]
    command += ["--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    remote = RemoteReward(f"http://127.0.0.1:{port}", rows=1, retries=1, pause=0.05)
    processes: list[subprocess.Popen[bytes]] = []
    missing: list[int] = []

    def start() -> None:
        processes.append(subprocess.Popen(command, env=environment, cwd=tmp_path))
        while processes[-1].poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.2)

    def compared(samples: Samples, prompts: Sequence[str]) -> Tensor:
        """The remote scores, with the server killed in every other call after the first update."""
        killed = len(missing) in (2, 4, 6)
        moment = threading.Timer(moments.choice([0, 0.02, 0.04, 0.06]), processes[-1].kill)
        if killed:
            moment.start()
        scores, expected = remote(samples, prompts), redness(samples, prompts)
        assert bool(((scores == expected) | scores.isnan()).all())
        missing.append(int(scores.isnan().sum()))
        if killed:
            processes[-1].wait()
            start()
        return scores

    start()
    try:
        small_runs.run(tmp_path, updates=4, reward=compared)
    finally:
        processes[-1].kill()
        processes[-1].wait()
    assert len(processes) == 4
    assert sum(missing[2::2]) > 0 and sum(missing[1::2]) == 0
    assert len(small_runs.metrics(tmp_path / "run")) > 4
