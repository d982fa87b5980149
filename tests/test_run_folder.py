"""What a run writes survives what can happen to it."""

import json
import math
from pathlib import Path

import pytest
import torch

from diffreward.run_folder import RunFolder


def folder(path: Path) -> RunFolder:
    return RunFolder(path / "run", checkpoints_kept=2)


def test_a_new_run_starts_at_the_beginning(tmp_path: Path) -> None:
    assert folder(tmp_path).open("seed: 0", resume=False) is None
    assert folder(tmp_path).open("seed: 0", resume=True) is None


def test_a_crash_before_the_first_file_was_whole_leaves_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.writing").write_text("se")
    assert folder(tmp_path).open("seed: 0", resume=True) is None


def test_tensors_and_state_come_back_from_the_newest_checkpoint(tmp_path: Path) -> None:
    run = folder(tmp_path)
    run.open("seed: 0", resume=False)
    for update in (1, 2, 3):
        run.save(update, {"w": torch.full((2,), float(update))}, {"optimizer": {"step": update}})
    assert folder(tmp_path).open("seed: 0", resume=True) == 3
    tensors, state = run.load(3)
    assert tensors["w"].tolist() == [3, 3] and state["optimizer"]["step"] == 3
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == ["000002", "000003"]


def test_a_checkpoint_that_was_being_written_is_not_one(tmp_path: Path) -> None:
    run = folder(tmp_path)
    run.open("seed: 0", resume=False)
    run.save(1, {"w": torch.zeros(1)}, {})
    (run.path / "checkpoints" / ".000002.writing").mkdir()
    assert folder(tmp_path).open("seed: 0", resume=True) == 1
    run.save(2, {"w": torch.zeros(1)}, {})
    assert folder(tmp_path).open("seed: 0", resume=True) == 2


def test_metrics_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    run = folder(tmp_path)
    run.open("seed: 0", resume=False)
    run.save(1, {"w": torch.zeros(1)}, {})
    for update in (1, 2):
        run.log({"kind": "update", "update": update})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "upd')
    folder(tmp_path).open("seed: 0", resume=True)
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in lines] == [1]


def test_what_is_no_number_is_null_in_json(tmp_path: Path) -> None:
    run = folder(tmp_path)
    run.open("seed: 0", resume=False)
    run.log({"kind": "update", "reward": math.nan, "loss": 0.5, "parts": {"a": math.inf}})
    line = (run.path / "metrics.jsonl").read_text()
    assert line == '{"kind": "update", "reward": null, "loss": 0.5, "parts": {"a": null}}\n'


def test_another_run_is_named_by_what_differs(tmp_path: Path) -> None:
    folder(tmp_path).open("seed: 0\nrate: 1", resume=False)
    with pytest.raises(ValueError, match=r"rate: 1.*rate: 2"):
        folder(tmp_path).open("seed: 0\nrate: 2", resume=True)
