"""The Python of the README, as written."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_examples_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    whole = [block for block in blocks if not block.startswith("pipe.")]  # which makes no pipe
    names: dict[str, object] = {}
    for block in whole:
        exec(block, names)
    assert (tmp_path / "runs" / "gallery.html").is_file()
    assert (tmp_path / "runs" / "readme" / "report.html").is_file()
