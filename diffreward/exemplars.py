"""Reference sets of media files, as rewards of sets compare with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from diffreward.embedding import Embedding, EmbeddingFunction
from diffreward.moments import Moments, save_rows
from diffreward.preferences.media import read_sample
from diffreward.samples import Samples, Texts


def exemplars(source: str | Path) -> Iterator[tuple[Samples, list[str]]]:
    """The media of a folder, one after the other by name, each with an empty prompt.

    Args:
        source: a folder with pictures, videos or sounds, also in folders below; or a text file, of
            which each line that is not empty is an exemplar.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: at a file that cannot be read, naming it.
    """
    path = Path(source).expanduser()
    if path.is_file():
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        for line in filter(None, lines):
            yield Texts((line,)), [""]
        return
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"there are no files in {path.absolute()}")
    for file in files:
        yield read_sample(str(file), file.read_bytes), [""]


def write_reference(
    embedding: Embedding | EmbeddingFunction,
    source: str | Path,
    output: str | Path,
    keep_rows: bool,
    about: str,
) -> tuple[int, int]:
    """Write the statistics of a reference set, to be read by rewards of sets and to be shared.

    Args:
        embedding: in what the set is seen.
        source: as of `exemplars`.
        output: a file, ``.safetensors``.
        keep_rows: the rows themselves, as `MMD`, `Coverage` and the like compare with; else their
            moments, as `FrechetDistance` does.
        about: kept in the file, for whoever reads it.

    Returns:
        The numbers of rows and of features.

    Raises:
        FileNotFoundError, ValueError: as `exemplars`.
    """
    metadata = {"embedding": about, "source": str(source)}
    if not keep_rows:
        moments = Moments.of_samples(embedding, exemplars(source))
        moments.save(output, metadata)
        return moments.count, len(moments.mean)
    with torch.no_grad():
        rows = torch.cat([embedding(*one).flatten(0, 1).cpu() for one in exemplars(source)])
    save_rows(rows.float(), output, metadata)
    return rows.shape[0], rows.shape[1]
