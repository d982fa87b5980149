"""The report of a run: one HTML page without outside links, and a table for the terminal.

Both are made from what the run's folder holds, whether the run is finished, interrupted or still
going on. The measure called "reward" is the trained one; the others are held out.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import platform
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from markupsafe import Markup

TRAINED = "reward"


@dataclass(frozen=True)
class Estimate:
    """A mean over n samples and its standard error; NaN is unknown."""

    mean: float
    error: float
    n: int

    @classmethod
    def of(cls, measure: Mapping[str, Any]) -> Estimate:
        """The estimate that a line of metrics states."""
        return cls(_number(measure["mean"]), _number(measure["error"]), int(measure["n"]))

    def text(self, decimals: int, sign: Literal["", "+"] = "") -> str:
        """As in "0.412 ± 0.022"; a dash if there is none."""
        if math.isnan(self.mean):
            return "–"
        error = "" if math.isnan(self.error) else f" ± {self.error:.{decimals}f}"
        return f"{self.mean:{sign}.{decimals}f}{error}"


UNKNOWN = Estimate(math.nan, math.nan, 0)


@dataclass(frozen=True)
class Change:
    """A measure at the first and at the last evaluation."""

    name: str
    before: Estimate
    after: Estimate

    @classmethod
    def between(
        cls, before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
    ) -> list[Change]:
        """Every measure of two evaluations, as lines of metrics state them, the trained first."""
        return [
            cls(
                name,
                *(Estimate.of(end[name]) if name in end else UNKNOWN for end in (before, after)),
            )
            for name in sorted({**before, **after}, key=lambda name: name != TRAINED)
        ]

    @property
    def role(self) -> str:
        """What training had to do with this measure."""
        return "trained" if self.name == TRAINED else "held out"

    @property
    def difference(self) -> Estimate:
        """Last minus first, its error as if the two were independent."""
        error = math.hypot(self.before.error, self.after.error)
        n = min(self.before.n, self.after.n)
        return Estimate(self.after.mean - self.before.mean, error, n)

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
        return [(line["update"], _number(line[key])) for line in self.updates if key in line]

    def estimates(self, measure: str) -> list[tuple[int, Estimate]]:
        """Updates after which a measure was taken, and its estimates."""
        return [
            (line["update"], Estimate.of(line["measures"][measure]))
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
            {name: _number(value) for name, value in entry["scores"].items()},
        )
        for entry in json.loads(index.read_text(encoding="utf-8"))
    ]


def _number(value: float | None) -> float:
    # JSON has no NaN: null stands for it.
    return math.nan if value is None else float(value)


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
    parts = [f"{', '.join(names)} {word}" for word, names in held_out.items()]
    sentences.append(f"Held out: {'; '.join(parts)}." if parts else "No measure was held out.")
    return " ".join(sentences)


def warnings(record: Record) -> list[str]:
    """What in the numbers asks for a second look, a sentence each."""
    found = []
    trained = [c for c in record.changes if c.name == TRAINED]
    others = [c for c in record.changes if c.name != TRAINED]
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
    return f"update{'s' * (len(updates) > 1)} {', '.join(map(str, updates))}"


_STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "none",
}
# Stand-ins for colours that the page's style sheet decides, for light and dark.
_AXES, _LINE, _TRAINED, _HELD_OUT = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {_AXES: "muted", _LINE: "line", _TRAINED: "trained", _HELD_OUT: "held-out"}


@dataclass(frozen=True)
class Curve:
    """Points over the updates.

    Args:
        x: updates.
        y: values, NaN for a gap.
        spread: half the height of a band or of error bars; none if empty.
    """

    x: Sequence[float] = ()
    y: Sequence[float] = ()
    spread: Sequence[float] = ()

    @property
    def band(self) -> tuple[list[float], list[float], list[float]]:
        """Updates, lower and upper edge, thinned to what can be seen."""
        points = [*zip(self.x, self.y, self.spread, strict=True)][:: len(self.x) // 500 + 1]
        return (
            [x for x, _, _ in points],
            [y - half for _, y, half in points],
            [y + half for _, y, half in points],
        )


def _chart(line: Curve, dots: Curve, color: str = _TRAINED) -> Markup:
    """An inline SVG of a line with a band, of dots with error bars, or of both."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    ink = dict.fromkeys(["axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], _AXES)
    with matplotlib.rc_context(_STYLE | ink):
        figure = Figure(figsize=(3.2, 1.9), layout="constrained")
        axes = figure.subplots()
        if line.x:
            marker = "." if len(line.x) < 3 else ""
            axes.plot(line.x, line.y, color=_LINE, linewidth=1.2, marker=marker)
        if line.spread:
            axes.fill_between(*line.band, color=_LINE, alpha=0.2, linewidth=0)
        if dots.x:
            shape = {"markersize": 3.5, "linewidth": 1.2, "elinewidth": 1, "capsize": 2}
            axes.errorbar(dots.x, dots.y, dots.spread, fmt="o-", color=color, **shape)
        axes.set_xlabel("update")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        file = io.StringIO()
        nothing = dict.fromkeys(["Creator", "Date", "Format", "Type"])
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _inline(file.getvalue())


def _inline(svg: str) -> Markup:
    """An SVG file as an element of a page, which decides its size, font and colours."""
    from markupsafe import Markup

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'font-family: [^;"]*;? ?', "", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    return Markup(svg)


@dataclass(frozen=True)
class Media:
    """A sample as the page shows it.

    Args:
        kind: "pixels" (an image to be enlarged), "picture", "text", "audio", "video" or "missing".
        content: the text, or the file as a data URI.
    """

    kind: str
    content: str


@dataclass(frozen=True)
class Frame:
    """A sample at one evaluation."""

    update: int
    media: Media
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Strip:
    """The sample of one prompt and seed at several evaluations."""

    prompt: str
    frames: Sequence[Frame]

    @property
    def direction(self) -> Literal["up", "down", "same"]:
        """Where the trained reward went."""
        first, last = (self.frames[end].scores.get(TRAINED, math.nan) for end in (0, -1))
        if math.isnan(last - first) or first == last:
            return "same"
        return "up" if last > first else "down"


def _strips(
    galleries: Mapping[int, Sequence[Sample]], updates: Sequence[int], side: int, budget: int
) -> Iterator[Strip]:
    """The samples of the first update, followed through the others, within a number of bytes."""
    rows = [
        {(sample.file.name, sample.prompt): sample for sample in galleries[update]}
        for update in updates
    ]
    for key in rows[0] if rows else ():
        found = [
            (update, row[key]) for update, row in zip(updates, rows, strict=True) if key in row
        ]
        frames = [Frame(update, _media(one.file, side), one.scores) for update, one in found]
        budget -= sum(len(frame.media.content) for frame in frames)
        if budget < 0:
            return
        yield Strip(key[1], frames)


def _spread(updates: Sequence[int], columns: int) -> list[int]:
    """At most so many of the updates, evenly chosen, with the first and the last."""
    if len(updates) <= columns:
        return list(updates)
    return [updates[round(i * (len(updates) - 1) / (columns - 1))] for i in range(columns)]


def _media(file: Path, side: int) -> Media:
    try:
        return _MEDIA.get(file.suffix.lower(), _missing)(file, side)
    except OSError:
        return _missing(file, side)


def _missing(file: Path, side: int) -> Media:
    return Media("missing", file.name)


def _image(file: Path, side: int) -> Media:
    from PIL import Image

    with Image.open(file) as image:
        if image.format == "PNG" and max(image.size) <= 128:
            return Media("pixels", _uri("image/png", file.read_bytes()))
        image.thumbnail((side, side))
        smaller = io.BytesIO()
        image.convert("RGB").save(smaller, "JPEG", quality=85)
    return Media("picture", _uri("image/jpeg", smaller.getvalue()))


def _text(file: Path, side: int) -> Media:
    text = file.read_text(encoding="utf-8", errors="replace")
    return Media("text", text if len(text) <= 1000 else f"{text[:1000]} …")


def _audio(file: Path, side: int) -> Media:
    return Media("audio", _uri("audio/wav", file.read_bytes()))


def _video(file: Path, side: int) -> Media:
    return Media("video", _uri("video/mp4", file.read_bytes()))


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


_MEDIA: Mapping[str, Callable[[Path, int], Media]] = {
    ".png": _image,
    ".jpg": _image,
    ".txt": _text,
    ".wav": _audio,
    ".mp4": _video,
}


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into the folder of a run; at no moment is there half of one.

    Returns:
        The page.
    """
    from jinja2 import Environment, StrictUndefined

    record = Record.read(folder)
    updates = sorted(record.galleries)
    ends, some = _spread(updates, 2), _spread(updates, 8)
    config = folder / "config.yaml"
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["duration"] = _duration
    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        name=folder.resolve().name,
        verdict=verdict(record),
        warnings=warnings(record),
        record=record,
        measures=_measure_charts(record),
        ends=[*_strips(record.galleries, ends, side=224, budget=3_000_000)],
        strips=[*islice(_strips(record.galleries, some, side=112, budget=1_000_000), 8)],
        curves=_update_charts(record),
        times=_times(record),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        versions=_versions(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    target, aside = folder / "report.html", folder / ".report.html.writing"
    aside.write_text(page, encoding="utf-8")
    os.replace(aside, target)
    return target


def _measure_charts(record: Record) -> list[tuple[str, Markup]]:
    """A chart per measure; that of the trained reward also shows the training samples."""
    charts = []
    for name in dict.fromkeys([TRAINED, *(change.name for change in record.changes)]):
        taken = [(u, e) for u, e in record.estimates(name) if math.isfinite(e.mean)]
        dots = Curve(
            [update for update, _ in taken],
            [estimate.mean for _, estimate in taken],
            [estimate.error for _, estimate in taken],
        )
        line = Curve()
        if name == TRAINED:
            line = _curve(record.column(TRAINED), record.column("reward_std"))
        if line.x or dots.x:
            charts.append((name, _chart(line, dots, _TRAINED if name == TRAINED else _HELD_OUT)))
    return charts


def _update_charts(record: Record) -> tuple[list[tuple[str, Markup]], dict[str, float]]:
    """A chart of everything else that updates recorded; what never changed, by name instead."""
    shown_elsewhere = {"kind", "update", TRAINED, "reward_std", "unscored", "samples"}
    keys = [key for line in record.updates for key in line if not key.startswith("seconds")]
    charts, constants = [], {}
    for key in dict.fromkeys(key for key in keys if key not in shown_elsewhere):
        line = _curve(record.column(key))
        values = {y for y in line.y if math.isfinite(y)}
        if len(values) > 1:
            charts.append((key, _chart(line, Curve())))
        elif values:
            constants[key] = values.pop()
    return charts, constants


def _curve(points: Sequence[tuple[int, float]], spread: Sequence[tuple[int, float]] = ()) -> Curve:
    """Values over updates, infinite ones as gaps; empty if there is no finite one."""
    values = [y if math.isfinite(y) else math.nan for _, y in points]
    if all(map(math.isnan, values)):
        return Curve()
    half = dict(spread)
    updates = [update for update, _ in points]
    return Curve(updates, values, [half.get(update, math.nan) for update in updates])


def _times(record: Record) -> list[tuple[str, float, float]]:
    """Parts of the run, the seconds that each took in all, and each time."""
    parts = {
        f"updates{key.removeprefix('seconds').replace('_', ': ', 1)}": record.column(key)
        for key in dict.fromkeys(k for line in record.updates for k in line)
        if key.startswith("seconds")
    }
    taken = {part: [seconds for _, seconds in column] for part, column in parts.items()}
    taken["evaluations"] = [_number(e["seconds"]) for e in record.evaluations if "seconds" in e]
    return [(part, sum(one), sum(one) / len(one)) for part, one in taken.items() if one]


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} s"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("diffreward", "torch", "diffusers", "transformers", "peft", "accelerate"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
