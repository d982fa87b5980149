"""Where weights come from: a folder on this machine, or an id on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffreward


def check_source(source: str, marker: str) -> None:
    """Tell a missing folder from a hub id before anything heavy is imported.

    Args:
        source: a folder, or a hub id such as ``org/name``.
        marker: a file that a folder of this kind holds.

    Raises:
        FileNotFoundError: if the source can only be meant as a folder, and is none of this kind.
    """
    path = Path(source)
    if path.is_dir():
        if not (path / marker).is_file():
            raise FileNotFoundError(f"the folder {source} holds no {marker}")
        return
    is_hub_id = source.count("/") == 1 and source[0] not in "./~" and not path.parent.is_dir()
    if not is_hub_id:
        there = sorted(p.name for p in path.parent.glob("*/")) if path.parent.is_dir() else []
        raise FileNotFoundError(f"there is no folder {source}; beside it there are {there}")


def load_pipeline(source: str | Path, **arguments: Any) -> Any:
    """The pipeline of a folder or a hub repository: one of diffusers, or of our own.

    Args:
        source: a folder, or the name of a repository.
        arguments: of `from_pretrained`.
    """
    from diffusers import DiffusionPipeline

    name = DiffusionPipeline.load_config(str(source))["_class_name"]
    # diffusers looks for the classes of pipelines among its own only.
    kind = getattr(diffreward, name) if name in diffreward.__all__ else DiffusionPipeline
    return kind.from_pretrained(str(source), **arguments)
