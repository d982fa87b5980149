"""What a run has recorded in its folder: metrics, and the samples of its evaluations."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TRAINED = "reward"


@dataclass(frozen=True)
class Measure:
    """A mean over samples.

    Args:
        mean: over the n scored samples; NaN if there are none.
        error: standard error of the mean; NaN for fewer than two.
        n: samples with a score.
    """

    mean: float
    error: float
    n: int

    @classmethod
    def of(cls, measure: Mapping[str, Any]) -> Measure:
        """The measure that a line of metrics states."""
        return cls(number(measure["mean"]), number(measure["error"]), int(measure["n"]))

    def text(self, decimals: int, sign: Literal["", "+"] = "") -> str:
        """As in "0.412 ± 0.022"; a dash if there is none."""
        if math.isnan(self.mean):
            return "—"
        error = "" if math.isnan(self.error) else f" ± {self.error:.{decimals}f}"
        return f"{self.mean:{sign}.{decimals}f}{error}"


UNKNOWN = Measure(math.nan, math.nan, 0)


@dataclass(frozen=True)
class Change:
    """A measure at the first and at the last evaluation."""

    name: str
    before: Measure
    after: Measure

    @classmethod
    def between(
        cls, before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
    ) -> list[Change]:
        """Every measure of two evaluations, as lines of metrics state them, the trained first."""
        return [
            cls(
                name,
                *(Measure.of(end[name]) if name in end else UNKNOWN for end in (before, after)),
            )
            for name in sorted({**before, **after}, key=lambda name: name != TRAINED)
        ]

    @property
    def role(self) -> str:
        """What training had to do with this measure."""
        return "trained" if self.name == TRAINED else "held out"

    @property
    def difference(self) -> Measure:
        """Last minus first, its error as if the two were independent."""
        error = math.hypot(self.before.error, self.after.error)
        n = min(self.before.n, self.after.n)
        return Measure(self.after.mean - self.before.mean, error, n)

    @property
    def direction(self) -> Literal["rose", "fell", "held", "unknown"]:
        """Which way it went; "held" if by no more than two standard errors."""
        change = self.difference
        if math.isnan(change.mean) or math.isnan(change.error):
            return "unknown"
        if abs(change.mean) <= 2 * change.error:
            return "held"
        return "rose" if change.mean > 0 else "fell"

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Before, after, change and n, with two digits of the smallest error."""
        errors = [e for e in (self.before.error, self.after.error) if e > 0]
        decimals = min(9, max(0, 1 - math.floor(math.log10(min(errors))))) if errors else 3
        counts = dict.fromkeys(str(end.n) for end in (self.before, self.after) if end.n)
        return (
            self.before.text(decimals),
            self.after.text(decimals),
            self.difference.text(decimals, "+"),
            " → ".join(counts),
        )


@dataclass(frozen=True)
class Sample:
    """A sample that an evaluation wrote down."""

    file: Path
    prompt: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Record:
    """What a run has recorded so far.

    Args:
        updates: lines of metrics of the updates.
        evaluations: lines of metrics of the evaluations.
        galleries: samples by the update after which they were drawn.
        incomplete: what a crash cut off, or is being written.
    """

    updates: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]
    galleries: Mapping[int, Sequence[Sample]]
    incomplete: Sequence[str]

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read the folder of a run; what is not there is left out."""
        lines = defaultdict[str, list[Mapping[str, Any]]](list)
        incomplete = []
        file = folder / "metrics.jsonl"
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        for number, line in enumerate(text.splitlines(), 1):
            try:
                found = json.loads(line)
            except json.JSONDecodeError:
                incomplete.append(f"Line {number} of metrics.jsonl")
            else:
                lines[found["kind"]].append(found)
        evaluated = {line["update"] for line in lines["evaluation"]}
        galleries = {}
        for index in sorted(folder.glob("samples/[0-9]*/index.json")):
            update = int(index.parent.name)
            # Samples without a line of metrics belong to a part of the run that was given up.
            if evaluated and update not in evaluated:
                continue
            try:
                galleries[update] = _gallery(index)
            except json.JSONDecodeError:
                incomplete.append(str(index.relative_to(folder)))
        return cls(lines["update"], lines["evaluation"], galleries, incomplete)

    def column(self, key: str) -> list[tuple[int, float]]:
        """Updates that recorded something under a key, and what."""
        return [(line["update"], number(line[key])) for line in self.updates if key in line]

    def estimates(self, measure: str) -> list[tuple[int, Measure]]:
        """Updates after which a measure was taken, and its estimates."""
        return [
            (line["update"], Measure.of(line["measures"][measure]))
            for line in self.evaluations
            if measure in line["measures"]
        ]

    @property
    def changes(self) -> list[Change]:
        """Every measure from the first to the last evaluation, the trained one first."""
        if not self.evaluations:
            return []
        first, last = self.evaluations[0]["measures"], self.evaluations[-1]["measures"]
        return Change.between(first, last if len(self.evaluations) > 1 else {})


def _gallery(index: Path) -> list[Sample]:
    return [
        Sample(
            index.with_name(entry["file"]),
            entry["prompt"],
            {name: number(value) for name, value in entry["scores"].items()},
        )
        for entry in json.loads(index.read_text(encoding="utf-8"))
    ]


def number(value: float | None) -> float:
    """A number of a line of metrics; null stands for NaN, which JSON does not have."""
    return math.nan if value is None else float(value)


def stored(value: Any) -> Any:
    """What JSON holds for numbers, also in mappings: the inverse of `number`."""
    if isinstance(value, Mapping):
        return {key: stored(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
