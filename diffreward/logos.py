"""Sequence logos of a page: which letters stand where, in how many of the samples.

Source: Schneider and Stephens (1990), Nucleic Acids Res. 18:6097; the correction for few sequences
is (V - 1) / (2 n ln 2) bits, Schneider et al. (1986), J. Mol. Biol. 188:415.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffreward.record import Sample

if TYPE_CHECKING:
    from numpy import ndarray

_COLOURS = {"ACGT": "classic", "ACGU": "classic", "ACDEFGHIKLMNPQRSTVWY": "chemistry"}
"""By alphabet; these are the names of logomaker."""
_ROW, _ROWS = 60, 5
"""Positions in a row, and rows: what can be read at the width of a page."""


@dataclass(frozen=True)
class Logo:
    """The logo of the sequences of one evaluation.

    Args:
        update: after which they were drawn.
        count: sequences.
        length: of each.
        shown: positions that the picture has.
        picture: a data URI.
    """

    update: int
    count: int
    length: int
    shown: int
    picture: str


def logos(galleries: Mapping[int, Sequence[Sample]], updates: Sequence[int]) -> list[Logo]:
    """A logo per update on one scale; none if samples are no aligned sequences, or no logomaker."""
    sets = [_sequences(galleries[update]) for update in updates]
    letters = [a for a in _COLOURS if all(set(s) <= set(a) for strings in sets for s in strings)]
    if not letters or not all(sets) or importlib.util.find_spec("logomaker") is None:
        return []
    heights = [information(strings, letters[0]) for strings in sets]
    top = max([0.25, *(float(each.sum(1).max()) for each in heights)])
    return [
        Logo(update, len(strings), len(strings[0]), len(each), _picture(each, letters[0], top))
        for update, strings, each in zip(updates, sets, heights, strict=True)
    ]


def _sequences(samples: Sequence[Sample]) -> list[str]:
    """Two or more strings of one length that samples were written as; else none."""
    files = [sample.file for sample in samples]
    if any(file.suffix != ".txt" for file in files):
        return []
    try:
        strings = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    except OSError:
        return []
    return strings if len(strings) > 1 and len({*map(len, strings)} - {0}) == 1 else []


def information(strings: Sequence[str], alphabet: str) -> ndarray:
    """The heights of the letters, (positions, V) float64, in bits; at most log2 V at a position.

    Args:
        strings: of one length, of which the positions that fit into a picture count.
        alphabet: the V letters.
    """
    import numpy as np

    rows = np.array([list(string[: _ROW * _ROWS]) for string in strings])
    shares = np.stack([(rows == letter).mean(0) for letter in alphabet], 1)
    entropy = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(1)
    chance = (len(alphabet) - 1) / (2 * len(strings) * math.log(2))
    bits = np.maximum(math.log2(len(alphabet)) - entropy - chance, 0)
    heights: ndarray = shares * bits[:, None]
    return heights


def _picture(heights: ndarray, alphabet: str, top: float) -> str:
    import logomaker
    import matplotlib
    import pandas as pd
    from matplotlib.figure import Figure

    rows = math.ceil(len(heights) / _ROW)
    with matplotlib.rc_context({"font.size": 7, "axes.linewidth": 0.6}):
        figure = Figure(figsize=(10, 0.9 * rows + 0.1), layout="constrained")
        for row, axes in enumerate(figure.subplots(rows, squeeze=False)[:, 0]):
            first, last = row * _ROW, (row + 1) * _ROW
            table = pd.DataFrame(heights[first:last], columns=[*alphabet])
            table.index += first + 1
            # It draws a row of nothing, too, but warns of its height.
            if heights[first:last].any():
                logomaker.Logo(table, ax=axes, color_scheme=_COLOURS[alphabet])
            axes.set(xlim=(first + 0.5, last + 0.5), ylim=(0, top), ylabel="bits")
            axes.spines[["top", "right", "left"]].set_visible(False)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=150)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
