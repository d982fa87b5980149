"""The report of a run: one HTML page without outside links, and a table for the terminal.

Both are made from what the run's folder holds, whether the run is finished, interrupted or still
going on. The measure called "reward" is the trained one; the others are held out.
"""

from __future__ import annotations

import math
import os
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from itertools import islice
from pathlib import Path

from diffreward.charts import measure_charts, reward_histogram, update_charts
from diffreward.exhibits import spread, strips
from diffreward.logos import logos
from diffreward.record import TRAINED, Record, number


def summary(folder: Path) -> str:
    """The measures before and after as an aligned table, then what it comes to."""
    record = Record.read(folder)
    rows = [(f"{c.name} ({c.role})", *c.cells) for c in record.changes]
    if rows:
        rows.insert(0, ("measure", "before", "after", "change", "n"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, verdict(record), *(f"Warning: {w}" for w in warnings(record))])


def verdict(record: Record) -> str:
    """What became of the measures, in a line."""
    if not record.evaluations:
        return "Not evaluated yet."
    if len(record.evaluations) == 1:
        update = record.evaluations[0]["update"]
        return f"Evaluated once, after update {update}: nothing to compare yet."
    words = {"held": "did not change measurably", "unknown": "cannot be compared"}
    sentences, held_out = [], defaultdict[str, list[str]](list)
    for change in record.changes:
        word = words.get(change.direction, change.direction)
        if change.name == TRAINED:
            sentences.append(f"The trained reward {word} ({change.cells[2]}).")
        else:
            held_out[word].append(change.name)
    parts = [f"{_listed(names)} {word}" for word, names in held_out.items()]
    sentences.append(f"Held out: {'; '.join(parts)}." if parts else "No measure was held out.")
    return " ".join(sentences)


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def warnings(record: Record) -> list[str]:
    """What in the numbers asks for a second look, a sentence each."""
    found = []
    trained = [c for c in record.changes if c.name == TRAINED]
    others = [c for c in record.changes if c.name != TRAINED and c.direction != "unknown"]
    if any(c.direction == "fell" for c in trained):
        found.append("The trained reward fell.")
    rose = any(c.direction == "rose" for c in trained)
    fell = any(c.direction == "fell" for c in others)
    if rose and fell and all(c.difference.mean < 0 for c in others):
        found.append(
            "The trained reward rises while every held-out measure falls, which looks like "
            "over-optimisation: an earlier checkpoint may be the better model."
        )
    for key in (TRAINED, "loss", "grad_norm"):
        updates = [update for update, value in record.column(key) if not math.isfinite(value)]
        if updates:
            found.append(f"{key} was not a number in {_enumerated(updates)}.")
    equal = [update for update, value in record.column("reward_std") if value == 0]
    if equal:
        found.append(f"All samples scored the same in {_enumerated(equal)}: nothing to learn from.")
    unscored = {update: n for update, n in record.column("unscored") if n > 0}
    if unscored:
        total = sum(n for _, n in record.column("samples"))
        share = f" of {total:g}" if total else ""
        count = sum(unscored.values())
        found.append(f"{count:g}{share} samples had no score, in {_enumerated([*unscored])}.")
    return found + [f"{what} is incomplete and was left out." for what in record.incomplete]


def _enumerated(updates: Sequence[int]) -> str:
    if len(updates) > 3:
        return f"{len(updates)} updates from {updates[0]} to {updates[-1]}"
    return f"update{'s' * (len(updates) > 1)} {_listed([str(update) for update in updates])}"


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into the folder of a run; at no moment is there half of one.

    Returns:
        The page.
    """
    record = Record.read(folder)
    updates, lines = sorted(record.galleries), [*record.updates, *record.evaluations]
    ends, some = spread(updates, 2), spread(updates, 8)
    config = folder / "config.yaml"
    values = {
        "name": folder.resolve().name,
        "verdict": verdict(record),
        "warnings": warnings(record),
        "record": record,
        "measures": measure_charts(record),
        "histogram": reward_histogram(record),
        "logos": logos(record.galleries, ends),
        "ends": [*strips(record.galleries, ends, side=224, budget=3_000_000)],
        "strips": [*islice(strips(record.galleries, some, side=112, budget=1_000_000), 8)],
        "curves": update_charts(record),
        "times": _times(record),
        "seconds": sum(number(line.get("seconds", 0)) for line in lines),
        "config": config.read_text(encoding="utf-8") if config.is_file() else "",
    }
    return write_page(folder / "report.html", Path(__file__).with_name("report.html.j2"), values)


def write_page(target: Path, template: Path, values: Mapping[str, object]) -> Path:
    """Fill a template with values, versions and the date; at no moment is there half of a page.

    Returns:
        The page.
    """
    from jinja2 import Environment, StrictUndefined

    target.parent.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": _duration, "score": _score}
    page = environment.from_string(template.read_text(encoding="utf-8")).render(
        values,
        versions=_versions(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    aside = target.with_name(f".{target.name}.writing")
    aside.write_text(page, encoding="utf-8")
    os.replace(aside, target)
    return target


def _times(record: Record) -> list[tuple[str, float, float]]:
    """Parts of the run, the seconds that each took in all, and each time."""
    parts = {
        f"updates{key.removeprefix('seconds').replace('_', ': ', 1)}": record.column(key)
        for key in sorted({key for line in record.updates for key in line})
        if key.startswith("seconds")
    }
    taken = {part: [seconds for _, seconds in column] for part, column in parts.items()}
    taken["evaluations"] = [number(e["seconds"]) for e in record.evaluations if "seconds" in e]
    return [(part, sum(one), sum(one) / len(one)) for part, one in taken.items() if one]


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} s"


def _score(value: float) -> str:
    size = abs(value)
    if math.isnan(value):
        return "—"
    if 0 < size < 0.01:
        return f"{value:.1g}"
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2}f}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("diffreward", "torch", "diffusers", "transformers", "peft", "accelerate"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
