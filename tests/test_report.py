"""The report against runs that are written down by hand."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffreward.charts import reward_histogram
from diffreward.record import Change, Measure, Record
from diffreward.report import summary, verdict, warnings, write_report


def update(number: int, **values: Any) -> dict[str, Any]:
    return {"kind": "update", "update": number, "reward": 0.5, "reward_std": 0.1} | values


def evaluation(number: int, **measures: tuple[float | None, float | None, int]) -> dict[str, Any]:
    found = {
        name.replace("_", " "): dict(zip(("mean", "error", "n"), values, strict=True))
        for name, values in measures.items()
    }
    return {"kind": "evaluation", "update": number, "measures": found, "seconds": 2.0}


def write_metrics(folder: Path, *lines: Mapping[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


def write_samples(
    folder: Path,
    number: int,
    scores: Sequence[float | None],
    prompt: str = "a red seven",
    side: int = 32,
) -> None:
    target = folder / "samples" / f"{number:06d}"
    target.mkdir(parents=True)
    noise = np.random.default_rng(number).integers(0, 256, (len(scores), side, side, 3), np.uint8)
    index = []
    for i, score in enumerate(scores):
        Image.fromarray(noise[i]).save(target / f"{i:03d}.png", compress_level=0)
        index.append({"file": f"{i:03d}.png", "prompt": prompt, "scores": {"reward": score}})
    (target / "index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two evaluations, two updates, three samples of which one got better and one worse."""
    folder = write_metrics(
        tmp_path / "run",
        evaluation(0, reward=(0.1, 0.03, 64), all_right=(0.412, 0.022, 512)),
        update(1, loss=0.5, grad_norm=1.0, learning_rate=1e-4, unscored=0, seconds=3.0),
        update(2, loss=0.25, grad_norm=2.0, learning_rate=1e-4, unscored=0, seconds=5.0),
        evaluation(2, reward=(0.5, 0.04, 64), all_right=(0.691, 0.02, 512)),
    )
    (folder / "config.yaml").write_text("algorithm: DDPO\n", encoding="utf-8")
    write_samples(folder, 0, [0.25, 0.75, None])
    write_samples(folder, 2, [0.75, 0.25, 0.5])
    return folder


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def test_the_summary_states_before_after_and_change_with_their_errors(run: Path) -> None:
    # The error of the change is that of independent means: sqrt(0.03^2 + 0.04^2) = 0.05.
    assert summary(run).splitlines()[:3] == [
        "measure                before          after           change           n",
        "reward (trained)       0.100 ± 0.030   0.500 ± 0.040   +0.400 ± 0.050   64",
        "all right (held out)   0.412 ± 0.022   0.691 ± 0.020   +0.279 ± 0.030   512",
    ]


def test_the_page_holds_the_numbers_of_the_summary(run: Path) -> None:
    page = page_of(run)
    for cell in ("0.100 ± 0.030", "0.691 ± 0.020", "+0.279 ± 0.030", "64", "512"):
        assert f">{cell}</td>" in page
    assert ">trained</td>" in page
    assert ">held out</td>" in page
    assert "algorithm: DDPO" in page
    assert "learning_rate 0.0001" in page


def test_samples_are_marked_by_where_their_reward_went(run: Path) -> None:
    page = page_of(run)
    assert re.findall(r'<article class="pair (\w+)">', page) == ["up", "down", "unknown"]
    assert "rose on 1 of the 3 samples shown and fell on 1" in page
    assert "0.25 → 0.75" in page
    assert "— → 0.50" in page


def test_digits_follow_the_smallest_error() -> None:
    def cells(*errors: float) -> tuple[str, ...]:
        return Change("x", Measure(1234.5678, errors[0], 8), Measure(1234.5, errors[1], 9)).cells

    assert cells(0.022, 0.3) == ("1234.568 ± 0.022", "1234.500 ± 0.300", "-0.068 ± 0.301", "8 → 9")
    assert cells(31.0, 40.0)[:2] == ("1235 ± 31", "1234 ± 40")
    assert cells(0.0, float("nan"))[:2] == ("1234.568 ± 0.000", "1234.500")


@pytest.mark.parametrize(
    ("after", "direction"), [(0.21, "rose"), (0.19, "held"), (-0.21, "fell"), (None, "unknown")]
)
def test_a_change_counts_from_two_standard_errors(after: float | None, direction: str) -> None:
    ends = ({"mean": mean, "error": 0.1 / 2**0.5, "n": 9} for mean in (0.0, after))
    (change,) = Change.between(*({"reward": end} for end in ends))
    assert change.direction == direction


def test_over_optimisation_is_called_by_its_name(tmp_path: Path) -> None:
    def found(**after: tuple[float, float, int]) -> list[str]:
        before = dict.fromkeys(["reward", *after], (0.5, 0.01, 64))
        lines = [evaluation(0, **before), evaluation(9, reward=(0.9, 0.01, 64), **after)]
        return warnings(Record.read(write_metrics(tmp_path, *lines)))

    down, steady, up = (0.3, 0.01, 64), (0.499, 0.01, 64), (0.6, 0.01, 64)
    assert "over-optimisation" in found(a=down, b=steady)[0]
    assert found(a=down, b=up) == []
    assert found(a=steady, b=steady) == []
    assert found() == []


def test_numbers_that_are_none_are_reported(tmp_path: Path) -> None:
    folder = write_metrics(
        tmp_path,
        update(1, loss=None, unscored=3, samples=8),
        update(2, loss=float("nan"), reward_std=0.0, unscored=0, samples=8),
        evaluation(2, reward=(None, None, 0)),
    )
    assert warnings(Record.read(folder)) == [
        "loss was not a number in updates 1 and 2.",
        "All samples scored the same in update 2: nothing to learn from.",
        "3 of 16 samples had no score, in update 1.",
    ]
    write_report(folder)


def test_rewards_before_and_after_are_shown_as_histograms(run: Path) -> None:
    record = Record.read(run)
    svg = str(reward_histogram(record))
    assert svg.count("var(--line)") >= 2
    assert svg.count("var(--trained)") >= 2
    assert "reward of the samples written down" in page_of(run)
    shutil.rmtree(run / "samples/000000")
    assert reward_histogram(Record.read(run)) is None
    assert "reward of the samples written down" not in page_of(run)
    write_samples(run, 0, [None, None])
    assert reward_histogram(Record.read(run)) is None


def test_equal_rewards_have_a_histogram(tmp_path: Path) -> None:
    write_metrics(tmp_path, evaluation(0, reward=(1, 0, 2)), evaluation(1, reward=(1, 0, 2)))
    for number in range(2):
        write_samples(tmp_path, number, [1.0, 1.0])
    assert reward_histogram(Record.read(tmp_path)) is not None


def test_user_text_is_escaped(run: Path) -> None:
    attack = "</title></pre>\"'><script>alert(1)</script>"
    write_metrics(run, evaluation(1, reward=(0, 0, 1), **{attack: (0.0, 0.0, 1)}))
    write_samples(run, 1, [0.5], prompt=attack)
    (run / "config.yaml").write_text(attack, encoding="utf-8")
    page = page_of(run)
    assert "<script" not in page
    # Title of a chart, alternative text, prompt, row of the table, configuration.
    assert page.count("&lt;script&gt;") >= 5


def test_nothing_is_loaded_from_outside(run: Path) -> None:
    page = page_of(run)
    links = re.findall(r"""(?:src|href|data|action)\s*=\s*["']?([^"'\s>]+)""", page)
    assert links
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert not re.search(r"url\((?!#)|@import|<script|<link|<iframe", page)


def test_samples_are_found_in_the_page_as_they_are(run: Path) -> None:
    import base64

    first = (run / "samples/000000/000.png").read_bytes()
    assert base64.b64encode(first).decode() in page_of(run)


@pytest.mark.parametrize("kept", range(5))
def test_a_run_is_reported_wherever_it_stopped(run: Path, kept: int) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:kept]) + '{"kind": "upd')
    (run / "config.yaml").unlink()
    page = page_of(run)
    assert f"Line {kept + 1} of metrics.jsonl is incomplete" in page
    assert ("+0.400" in page) == ("+0.400" in summary(run)) == (kept == 4)
    assert verdict(Record.read(run)).startswith(
        ["Not eval", "Evaluated once", "Evaluated once", "Evaluated once", "The trained"][kept]
    )


def test_an_empty_folder_is_reported(tmp_path: Path) -> None:
    assert "Not evaluated yet." in page_of(tmp_path)
    assert summary(tmp_path) == "Not evaluated yet."


def test_samples_that_cannot_be_read_leave_a_gap(run: Path) -> None:
    (run / "samples/000000/000.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    (run / "samples/000002/001.png").unlink()
    assert page_of(run).count("cannot be shown") == 2
    (run / "samples/000002/index.json").write_text('[{"file": ')
    assert "samples/000002/index.json is incomplete" in page_of(run).replace("\\", "/")


def test_samples_of_a_part_that_was_given_up_are_left_out(run: Path) -> None:
    write_samples(run, 9, [0.9])
    assert set(Record.read(run).galleries) == {0, 2}


def test_samples_of_other_kinds_are_shown(run: Path) -> None:
    folder = run / "samples" / "000002"
    contents = {"a.txt": b"ACGT<b>", "b.wav": b"RIFF", "c.mp4": b"ftyp", "d.bin": b"?"}
    index = [{"file": name, "prompt": "", "scores": {}} for name in contents]
    for number in ("000000", "000002"):
        folder = run / "samples" / number
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        (folder / "index.json").write_text(json.dumps(index))
    page = page_of(run)
    assert page.count("ACGT&lt;b&gt;</pre>") == 2
    assert page.count('src="data:audio/wav;base64,') == 2
    assert page.count('src="data:video/mp4;base64,') == 2
    assert page.count("d.bin<br>cannot be shown") == 2


def test_many_large_images_make_a_page_of_a_few_megabytes(tmp_path: Path) -> None:
    # Noise is what JPEG compresses worst.
    write_metrics(tmp_path, *(evaluation(number, reward=(0.0, 0.1, 64)) for number in range(3)))
    write_samples(tmp_path, 0, [0.0] * 64, side=512)
    for number in (1, 2):
        (tmp_path / "samples" / f"{number:06d}").symlink_to(tmp_path / "samples" / "000000")
    page = write_report(tmp_path)
    assert 1e6 < page.stat().st_size < 5e6
    shown = page.read_text(encoding="utf-8").count("<article")
    assert 24 <= shown < 64
    assert f"The first {shown} of 64 samples" in page.read_text(encoding="utf-8")


def test_files_that_are_too_large_are_not_in_the_page(run: Path) -> None:
    (run / "samples/000000/000.wav").write_bytes(bytes(3_000_000))
    index = [{"file": "000.wav", "prompt": "", "scores": {}}]
    (run / "samples/000000/index.json").write_text(json.dumps(index))
    page = page_of(run)
    assert "too large for this page" in page
    assert len(page) < 1e6


def test_a_long_run_makes_a_small_page(tmp_path: Path) -> None:
    lines = [update(number, loss=number % 7) for number in range(1, 20_001)]
    assert write_report(write_metrics(tmp_path, *lines)).stat().st_size < 5e5


def test_a_page_that_cannot_be_finished_does_not_replace_the_last(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = page_of(run)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    write_metrics(run, evaluation(0, reward=(0.9, 0.1, 4)))
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        write_report(run)
    assert (run / "report.html").read_text(encoding="utf-8") == before


def test_nothing_else_is_left_in_the_folder(run: Path) -> None:
    before = {path.name for path in run.iterdir()}
    assert write_report(run) == run / "report.html"
    assert {path.name for path in run.iterdir()} == before | {"report.html"}


def test_matplotlib_is_left_as_it_was(run: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_report(run)
    assert dict(matplotlib.rcParams) == before


def test_importing_the_report_imports_nothing_heavy() -> None:
    code = (
        "import sys, diffreward.report, diffreward.model_card;"
        "print({'torch', 'matplotlib', 'jinja2', 'PIL', 'huggingface_hub'} & set(sys.modules))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "set()"
