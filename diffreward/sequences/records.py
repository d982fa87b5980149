"""The sequences of FASTA files and of tables, as they stand there."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

FASTA = (".fa", ".fasta", ".fna", ".faa", ".ffn")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLES = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json"}
"""Files that the library `datasets` reads, and how it calls their formats."""

COLUMNS = ("sequence", "seq", "sequences")
"""Columns that are known by their names."""


def read_records(source: str, column: str | None = None, split: str = "train") -> list[str]:
    """The sequences of a file or table as they stand there.

    Args:
        source: as in `SequenceFiles`.
        column: of a table.
        split: of a `datasets` table.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `SequenceFiles.read`.
    """
    path = Path(source)
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind not in (*FASTA, *DELIMITERS):
        return _table(source, column, split)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {source}")
    with _opened(path) as file:
        if kind in FASTA:
            return _fasta(file, source)
        rows = csv.DictReader(file, delimiter=DELIMITERS[kind])
        name = _column(rows.fieldnames or (), column, source)
        return [row[name] or "" for row in rows]


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8", newline="")


def _fasta(file: TextIO, source: str) -> list[str]:
    try:
        from Bio.SeqIO.FastaIO import SimpleFastaParser
    except ImportError as error:
        raise ImportError(
            "FASTA files take Biopython: pip install 'diffreward[sequences]'"
        ) from error
    records = [sequence for _, sequence in SimpleFastaParser(file)]
    if not records:
        raise ValueError(f"{source} holds no FASTA record; each begins with a line '>NAME'")
    return records


def _table(source: str, column: str | None, split: str) -> list[str]:
    """A column of a table of the library `datasets`."""
    path = Path(source)
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.parent.is_dir()
    if not path.exists() and not is_hub_id:
        raise FileNotFoundError(f"there is no file or folder {source}")
    if path.is_file() and path.suffix not in TABLES:
        known = [*FASTA, *DELIMITERS, *TABLES]
        raise ValueError(f"a file of sequences ends with one of {known}, got {source}")
    try:
        import datasets
    except ImportError as error:
        raise ImportError("a table takes the library datasets: pip install datasets") from error
    if path.is_file():
        table = datasets.load_dataset(TABLES[path.suffix], data_files=source, split=split)
    elif (path / "state.json").is_file():
        table = datasets.load_from_disk(source)
    elif (path / "dataset_dict.json").is_file():
        table = datasets.load_from_disk(str(path / split))
    else:
        table = datasets.load_dataset(source, split=split)
    return [str(record) for record in table[_column(table.column_names, column, source)]]


def _column(names: Sequence[str], column: str | None, source: str) -> str:
    wanted = COLUMNS if column is None else (column,)
    found = [name for name in wanted if name in names]
    if not found:
        raise ValueError(f"{source} has the columns {list(names)}; name one of them by --column")
    return found[0]
