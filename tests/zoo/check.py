"""python -m zoo.check NAME ...: build and call entries by hand, in the tests folder."""

import importlib
import pkgutil
import sys
import tempfile
import time
from pathlib import Path

import torch

import zoo
from zoo.entry import Entry


def entries() -> list[Entry]:
    """All entries of all modules of the zoo."""
    found = []
    for module in pkgutil.iter_modules(zoo.__path__):
        if module.name not in ("entry", "check", "listing"):
            found += importlib.import_module(f"zoo.{module.name}").ENTRIES
    return found


def describe(value: object) -> str:
    """Type, shape and finiteness of an output."""
    if isinstance(value, list | tuple):
        return f"[{len(value)} x {describe(value[0])}]" if len(value) else "[]"
    if hasattr(value, "shape"):
        tensor = torch.as_tensor(value)
        return f"{tuple(tensor.shape)} finite={bool(tensor.isfinite().all())}"
    return type(value).__name__


def main(names: list[str]) -> None:
    """Print one line per entry."""
    for entry in entries():
        if names and entry.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            start = time.time()
            pipe = entry.build(Path(folder))
            pipe.set_progress_bar_config(disable=True)
            built = time.time()
            outputs = []
            for _ in range(2):
                torch.manual_seed(0)
                outputs.append(pipe(**entry.call)[0])
            same = describe(outputs[0]) == describe(outputs[1])
            seconds = f"build {built - start:5.1f} s, call {(time.time() - built) / 2:5.1f} s"
            found = f"{entry.medium}: {describe(outputs[0])} {'' if same else 'DIFFERS'}"
            print(f"{entry.name:40} {seconds}, {found}")


if __name__ == "__main__":
    main(sys.argv[1:])
