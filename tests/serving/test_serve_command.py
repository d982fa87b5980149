"""From a command line to a server, without starting it."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from diffreward.cli import main
from diffreward.reward import Reward, name_of
from diffreward.serving import server
from diffreward.serving.__main__ import main as serve_function

COLOURS = f"{Path(__file__).resolve().parents[1]}/colours.py:redness"

Served = list[tuple[Reward, server.Serving, str]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Served:
    """What would have been served."""
    found: Served = []
    for module in ("server", "__main__"):
        monkeypatch.setattr(f"diffreward.serving.{module}.serve", lambda *all: found.append(all))
    return found


def test_the_command_serves_any_reward_as_it_is_set_up(started: Served) -> None:
    for quality, port in (("50", "9001"), ("50", "9002"), ("60", "9001")):
        main(["serve", "--reward", "JpegCompressibility", "--reward.quality", quality,
              "--port", port, "--rows", "3"])  # fmt: skip
    (reward, serving, description), other_port, other_quality = started
    assert reward.quality == 50
    assert serving == server.Serving(port=9001, rows=3)
    assert description == other_port[2] != other_quality[2]


def test_little_more_than_torch_is_enough_to_serve_a_function(started: Served) -> None:
    serve_function([COLOURS, "--port", "9001", "--rows", "3"])
    ((reward, serving, description),) = started
    assert name_of(reward) == description == COLOURS
    assert serving == server.Serving(port=9001, rows=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "0"], "rows is at least 1, got 0"),
        (["--host", "0.0.0.0"], "everybody on the network.*DIFFREWARD_TOKEN"),
    ],
)
def test_mistakes_are_told_before_anything_is_served(
    options: Sequence[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("DIFFREWARD_TOKEN", raising=False)
    for start in (lambda: main(["serve", "--reward", COLOURS, *options]),
                  lambda: serve_function([COLOURS, *options])):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            start()
        assert stop.value.code == 2
        assert re.search(message, " ".join(capsys.readouterr().err.split()))


@pytest.mark.slow
def test_serving_a_function_loads_none_of_the_heavy_packages() -> None:
    heavy = ["accelerate", "diffusers", "jsonargparse", "peft", "transformers", "yaml"]
    code = f"import sys, diffreward.serving.__main__; sys.exit(any(map(sys.modules.get, {heavy})))"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
