"""Sequences to learn from: read, cut, cleaned, and a share of them held out.

What is dropped is counted by reason, and the counts go into the report of a run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffreward.alphabets import DNA, RNA, ids_of
from diffreward.random import stream
from diffreward.sequences.records import read_records

COMPLEMENTS = {"".join(sorted(DNA)): "TGCA", "".join(sorted(RNA)): "UGCA"}
"""The complements of the sorted symbols of an alphabet."""


@dataclass(frozen=True)
class Corpus:
    """Sequences as ids, and what became of all that was read.

    Args:
        training: (N, L) int64, over `alphabet`.
        held_out: (M, L) int64, of each sequence the strand that was read; neither strand is in
            `training`.
        alphabet: the symbols of ids 0, 1, ...
        read: records that were read.
        dropped: how many of them were left out, by reason.
    """

    training: Tensor
    held_out: Tensor
    alphabet: str
    read: int
    dropped: dict[str, int]

    @property
    def length(self) -> int:
        """Symbols per sequence."""
        return int(self.training.shape[1])

    def text(self) -> str:
        """One line for people: what was read, dropped and kept."""
        dropped = ", ".join(f"{n:,} {reason}" for reason, n in self.dropped.items() if n)
        return (
            f"{self.read:,} records, dropped {dropped or 'none'}; {len(self.training):,} sequences "
            f"of {self.length} to train on, {len(self.held_out):,} held out"
        )


@dataclass(frozen=True)
class SequenceFiles:
    """Where sequences come from, and what is kept of them.

    Args:
        sequences: a FASTA, CSV, TSV, parquet, arrow or json file (.gz for the first three too), a
            folder or hub id of the library `datasets`, or a list of these.
        alphabet: the symbols that count, as ACGT; records with others are dropped. Lower case is
            read as upper case.
        column: of tables; "sequence" or "seq" if not given.
        split: of a `datasets` table that has splits.
        crop: part of each record as Python slices it: "15:-15" takes 15 symbols off both ends.
        length: records of another length, after the crop, are dropped; without it they must all
            have the same.
        both_strands: whether training also sees the reverse complements, and a sequence counts as
            read before if its other strand was.
        held_out: share of the distinct sequences that is not trained on.
        seed: of the choice of those.

    Raises:
        ValueError: if the crop, the share or the alphabet cannot be meant.
    """

    sequences: str | Sequence[str]
    alphabet: str
    column: str | None = None
    split: str = "train"
    crop: str = ":"
    length: int | None = None
    both_strands: bool = False
    held_out: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if len(set(self.alphabet)) < max(2, len(self.alphabet)):
            raise ValueError(f"an alphabet has different symbols, two or more; got {self.alphabet}")
        if self.alphabet != self.alphabet.upper():
            raise ValueError(f"sequences are read in upper case, the alphabet is {self.alphabet}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is a share between 0 and 1, got {self.held_out}")
        if self.both_strands:
            _complements(self.alphabet)
        _slice(self.crop)

    def read(self) -> Corpus:
        """The sequences.

        Raises:
            FileNotFoundError: if there is no such file.
            ImportError: if a library that reads such files is not installed.
            ValueError: if a file cannot be read, or lengths differ, or too little is left.
        """
        sources = [self.sequences] if isinstance(self.sequences, str) else self.sequences
        records = [r for source in sources for r in read_records(source, self.column, self.split)]
        part = _slice(self.crop)
        kept, dropped = self._kept([record.upper()[part] for record in records])
        n = max(1, round(self.held_out * len(kept)))
        if len(kept) <= n:
            raise ValueError(
                f"of {len(records)} records {len(kept)} are left, and training takes two at least; "
                f"dropped: {dropped}. The alphabet is {self.alphabet}"
            )
        order = torch.randperm(len(kept), generator=stream(self.seed, "held out")).tolist()
        training, held_out = ([kept[i] for i in sorted(part)] for part in (order[n:], order[:n]))
        if self.both_strands:
            training += [reverse_complement(sequence, self.alphabet) for sequence in training]
        return Corpus(
            torch.tensor(ids_of(training, self.alphabet)),
            torch.tensor(ids_of(held_out, self.alphabet)),
            self.alphabet,
            len(records),
            dropped,
        )

    def _kept(self, records: Sequence[str]) -> tuple[list[str], dict[str, int]]:
        """The distinct sequences in their order, and how many records were left out and why."""
        symbols = set(self.alphabet)
        known = [record for record in records if record and set(record) <= symbols]
        length = self._length(known)
        fitting = [record for record in known if len(record) == length]
        # A sequence and its other strand are one thing here, or one could be held out alone.
        names = map(self._strandless, fitting) if self.both_strands else fitting
        first: dict[str, str] = {}
        for name, record in zip(names, fitting, strict=True):
            first.setdefault(name, record)
        distinct = list(first.values())
        dropped = {
            "with other symbols or empty": len(records) - len(known),
            "of another length": len(known) - len(fitting),
            "read before": len(fitting) - len(distinct),
        }
        return distinct, dropped

    def _length(self, records: Iterable[str]) -> int | None:
        lengths = Counter(map(len, records)).most_common()
        if self.length is not None or not lengths:
            return self.length
        if len(lengths) > 1:
            shown = ", ".join(f"{n} of {length}" for length, n in lengths[:4])
            raise ValueError(
                f"the sequences have {len(lengths)} lengths ({shown}, ...); a model has one. "
                f"--length {lengths[0][0]} drops the others, --crop cuts all"
            )
        return lengths[0][0]

    def _strandless(self, sequence: str) -> str:
        return min(sequence, reverse_complement(sequence, self.alphabet))


def reverse_complement(sequence: str, alphabet: str) -> str:
    """The other strand, read in its own direction.

    Raises:
        ValueError: if the alphabet is neither that of DNA nor that of RNA.
    """
    return sequence[::-1].translate(_complements(alphabet))


def _complements(alphabet: str) -> dict[int, int]:
    symbols = "".join(sorted(alphabet))
    if symbols not in COMPLEMENTS:
        raise ValueError(f"strands are of DNA (ACGT) or RNA (ACGU), got the alphabet {alphabet}")
    return str.maketrans(symbols, COMPLEMENTS[symbols])


def _slice(text: str) -> slice:
    match = re.fullmatch(r"(-?\d*):(-?\d*)", text)
    if match is None or "-" in match.groups():
        raise ValueError(f"a crop is START:STOP, as in 15:-15, got {text!r}")
    start, stop = (int(end) if end else None for end in match.groups())
    return slice(start, stop)
