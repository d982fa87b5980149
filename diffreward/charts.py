"""The charts of a page, as SVG elements that take their colours from it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffreward.record import TRAINED, Record

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

STYLE = {
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
    from matplotlib.ticker import FixedLocator, MaxNLocator

    ink = dict.fromkeys(["axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], _AXES)
    with matplotlib.rc_context(STYLE | ink):
        figure = Figure(figsize=(3.2, 1.9), layout="constrained")
        axes = figure.subplots()
        if line.x:
            marker = "." if len(line.x) < 3 else ""
            axes.plot(line.x, line.y, color=_LINE, linewidth=1.2, marker=marker)
        if line.spread:
            axes.fill_between(*line.band, color=_LINE, alpha=0.2, linewidth=0)
        if dots.x:
            axes.errorbar(
                dots.x,
                dots.y,
                dots.spread,
                fmt="o-",
                color=color,
                markersize=3.5,
                linewidth=1.2,
                elinewidth=1,
                capsize=2,
            )
        axes.set_xlabel("update")
        updates = {*line.x, *dots.x}
        ticks = MaxNLocator(5, integer=True, steps=[1, 2, 5, 10])
        axes.xaxis.set_major_locator(ticks if len(updates) > 1 else FixedLocator([*updates]))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    return inline(figure, _VARIABLES)


def reward_histogram(record: Record) -> Markup | None:
    """The trained rewards of the samples that the first and the last evaluation wrote down.

    None if there are not two evaluations, or nothing in them was scored.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    ends = [
        [sample.scores.get(TRAINED, math.nan) for sample in record.galleries[update]]
        for update in sorted(record.galleries)
    ]
    ends = [[score for score in end if math.isfinite(score)] for end in ends[:1] + ends[1:][-1:]]
    if len(ends) < 2 or not all(ends):
        return None
    low, high = (pick(map(pick, ends)) for pick in (min, max))
    ink = dict.fromkeys(["axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], _AXES)
    with matplotlib.rc_context(STYLE | ink):
        figure = Figure(figsize=(3.2, 1.9), layout="constrained")
        axes = figure.subplots()
        for scores, color in zip(ends, (_LINE, _TRAINED), strict=True):
            axes.hist(scores, bins=16, range=(low, high), color=color, alpha=0.35)
            axes.hist(scores, bins=16, range=(low, high), color=color, histtype="step")
        axes.set(xlabel=TRAINED, ylabel="samples")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return inline(figure, _VARIABLES)


def inline(figure: Figure, variables: Mapping[str, str]) -> Markup:
    """A figure as an element of a page, which decides its size, font and colours.

    Args:
        figure: drawn in `STYLE`.
        variables: colours of the figure, and the variables of the page that take their place.
    """
    import matplotlib
    from markupsafe import Markup

    file = io.StringIO()
    nothing = dict.fromkeys(["Creator", "Date", "Format", "Type"])
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'font-family: [^;"]*;? ?', "", svg)
    for color, variable in variables.items():
        svg = svg.replace(color, f"var(--{variable})")
    return Markup(svg)


def measure_charts(record: Record) -> list[tuple[str, Markup]]:
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


def update_charts(record: Record) -> tuple[list[tuple[str, Markup]], dict[str, float]]:
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
    return Curve(updates, values, [half.get(update, math.nan) for update in updates if half])
