"""Networks that Keras saved, from their files: arrays by name, and the layers in Keras's layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def read_weights(file: str, places: Mapping[str, str]) -> dict[str, Tensor]:
    """The arrays of a network by their names, float32.

    Args:
        file: an ``.npz`` with the names, or an HDF5 file as Keras writes it, for which the package
            h5py has to be installed.
        places: where in the HDF5 file the array of each name is.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if h5py is needed and missing.
        ValueError: naming an array that the file lacks.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path.absolute()}")
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return _chosen({name: np.asarray(arrays[name]) for name in arrays}, file, list(places))
    try:
        import h5py
    except ImportError:
        raise ImportError(f"pip install h5py to read {file}, or give the weights as .npz") from None
    with h5py.File(path) as stored:
        found = {name: np.asarray(stored[at]) for name, at in places.items() if at in stored}
    return _chosen(found, file, list(places))


def _chosen(arrays: Mapping[str, np.ndarray], file: str, names: list[str]) -> dict[str, Tensor]:
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"{file} lacks the arrays {missing}")
    return {name: torch.from_numpy(arrays[name]).float() for name in names}


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution without padding, of (B, L, C) to (B, L - K + 1, D).

    Args:
        x: channels last, as Keras has them.
        weight: (K, C, D), of a cross-correlation: taken as it is, not turned around.
        bias: (D,).
    """
    return F.conv1d(x.movedim(2, 1), weight.permute(2, 1, 0), bias).movedim(1, 2)
