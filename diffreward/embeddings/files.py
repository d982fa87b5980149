"""Files of weights that a user has downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def weights_file(weights: str, advice: str) -> str:
    """The absolute path of a file of weights.

    Args:
        weights: the file.
        advice: where to get it, said if it is missing.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = Path(weights).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path}; {advice}")
    return str(path)


def read_weights(file: str) -> dict[str, Tensor]:
    """The tensors of a file that torch wrote, by name; of a checkpoint, those of its ``model``."""
    content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    tensors: dict[str, Tensor] = content.get("model", content)
    return tensors


def check_layers(state: dict[str, Tensor], names: list[str], file: str) -> None:
    """Tell a file of another network before it is read.

    Raises:
        ValueError: if some of the names are missing.
    """
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"{file} holds other weights: {missing} are missing among {list(state)}")
