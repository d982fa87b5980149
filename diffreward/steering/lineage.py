"""The lineage of a steered prompt: who descends from whom, and the figure that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffreward.charts import STYLE
from diffreward.exhibits import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from diffreward.steering.result import Steered

_INK, _LINE, _CHOSEN, _BEST = "#68686d", "#8793a3", "#1a5fa8", "#b0560f"
VARIABLES = {_INK: "muted", _LINE: "line", _CHOSEN: "chosen", _BEST: "best"}
"""Colours of the figure for light paper, and the variables of a page that take their place."""
_DOTS = 1500
"""In one chart; more cannot be told apart."""


def ancestry(ancestors: Tensor) -> Tensor:
    """The ancestor at each time of each finished particle, (T, N) -> (T + 1, N) int64."""
    line = [torch.arange(ancestors.shape[1])]
    for parents in ancestors.flip(0):
        line.append(parents[line[-1]])
    return torch.stack(line[::-1])


def selections(ancestors: Tensor) -> list[int]:
    """The states of (T, N) ancestors from which not every particle goes on as itself."""
    moved = ancestors != torch.arange(ancestors.shape[1])
    return [int(state) for state in moved.any(1).nonzero()]


def junctions(ancestors: Tensor, most: int) -> list[int]:
    """The states of selections, and both ends; thinned to so many."""
    return spread(sorted({0, *selections(ancestors), len(ancestors)}), most)


@dataclass(frozen=True)
class Lineage:
    """One prompt of a result.

    Args:
        ancestors: of its N particles, (T, N).
        line: ancestors of the finished particles at each time, (T + 1, N).
        living: the finished particles with a weight, (N,) bool.
        chosen: number of the one that was returned.
        scored: the states that have rewards, the end included, ascending.
        rewards: there, (len(scored), N); NaN for none.
        ess: effective sample size at each time, (T + 1,).
    """

    ancestors: Tensor
    line: Tensor
    living: Tensor
    chosen: int
    scored: Sequence[int]
    rewards: Tensor
    ess: Tensor

    @classmethod
    def of(cls, steered: Steered, prompt: int) -> Lineage:
        """The lineage of a prompt by its number."""
        ancestors = steered.lineage[:, prompt]
        on_the_way = [rewards[prompt] for _, rewards in steered.history]
        return cls(
            ancestors,
            ancestry(ancestors),
            steered.cloud.log_weights[prompt] > -torch.inf,
            int(steered.chosen[prompt]),
            [*(state for state, _ in steered.history), len(ancestors)],
            torch.stack([*on_the_way, steered.rewards[prompt]]),
            steered.ess[:, prompt],
        )

    def surviving(self, states: Sequence[int]) -> Tensor:
        """Whether a finished particle with a weight descends from each, (len(states), N) bool."""
        line = self.line[[*states]][:, self.living]
        return torch.zeros(len(states), len(self.living), dtype=torch.bool).scatter(1, line, True)


def draw(steered: Steered, prompt: int) -> Figure:
    """Rewards and effective sample size over the steps of one prompt, and its family tree.

    Raises:
        IndexError: if there is no such prompt.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lineage = Lineage.of(steered, prompt)
    ink = ["axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color"]
    # Places that are searched for (by a constrained layout, too) take longer than all drawing,
    # which shows with a hundred prompts.
    titles = {"axes.titlesize": 8, "axes.titley": 1.0}
    with matplotlib.rc_context(STYLE | dict.fromkeys(ink, _INK) | titles):
        sides = {"left": 0.065, "right": 0.985, "bottom": 0.125, "top": 0.93}
        figure = Figure(figsize=(8.4, 3.4))
        axes: dict[str, Axes] = figure.subplot_mosaic(
            [["reward", "lineage"], ["ess", "lineage"]],
            height_ratios=[2, 1],
            sharex=True,
            gridspec_kw={**sides, "wspace": 0.12, "hspace": 0.28},
        )
        _draw_rewards(axes["reward"], lineage)
        _draw_ess(axes["ess"], lineage)
        _draw_tree(axes["lineage"], lineage)
        axes["ess"].set_xlabel("step")
        axes["lineage"].set_xlabel("step")
        axes["lineage"].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def _draw_rewards(axes: Axes, lineage: Lineage) -> None:
    """Every score as a point, joined along the lineages of the living."""
    most = max(2, _DOTS // len(lineage.living))
    rows = spread(range(len(lineage.scored)), most)
    states = [lineage.scored[row] for row in rows]
    rewards = lineage.rewards[rows]
    rewards = rewards.masked_fill(rewards.isinf(), torch.nan)
    lines = rewards.gather(1, lineage.line[states])
    axes.plot(states, lines[:, lineage.living], color=_LINE, linewidth=0.7, alpha=0.5)
    x = torch.tensor(states)[:, None].expand_as(rewards)
    surviving = lineage.surviving(states)
    _draw_dots(axes, x, rewards, ~surviving, 0.35)
    _draw_dots(axes, x, rewards, surviving, 1.0)
    best = rewards.nan_to_num(-torch.inf).amax(1)
    axes.plot(states, rewards.nanmean(1), color=_INK, linewidth=1, linestyle="--", label="mean")
    axes.plot(
        states, best.masked_fill(best.isinf(), torch.nan), color=_BEST, linewidth=1.2, label="best"
    )
    style = "o-" if len(states) <= 30 else "-"
    axes.plot(states, lines[:, lineage.chosen], style, color=_CHOSEN, markersize=4, label="chosen")
    axes.set_title("reward", loc="left")
    axes.tick_params(labelbottom=False)
    # Above the points, wherever they are.
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=3)


def _draw_ess(axes: Axes, lineage: Lineage) -> None:
    """The effective sample size, with points where it made particles be replaced."""
    from matplotlib.ticker import MaxNLocator

    states = spread(range(len(lineage.ess)), _DOTS)
    axes.plot(states, lineage.ess[states], color=_LINE, linewidth=1.2)
    selected = spread(selections(lineage.ancestors), _DOTS)
    axes.plot(selected, lineage.ess[selected], "o", color=_INK, markersize=3)
    axes.set_ylim(0, 1.08 * len(lineage.living))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_title("effective sample size", loc="left")


def _draw_tree(axes: Axes, lineage: Lineage) -> None:
    """Particles over the steps, each joined to the one that it came from."""
    from matplotlib.ticker import MaxNLocator

    states = junctions(lineage.ancestors, max(2, min(60, _DOTS // len(lineage.living))))
    surviving, numbers = lineage.surviving(states), torch.arange(len(lineage.living))
    for i, (here, there) in enumerate(pairwise(states)):
        parents = ancestry(lineage.ancestors[here:there])[0]
        # A long way is gone as the child, since particles are replaced at its beginning.
        bend = min(there, here + max(1, states[-1] // 20))
        for kept, alpha in ((~surviving[i + 1], 0.3), (surviving[i + 1], 1.0)):
            ends = torch.stack([parents, numbers, numbers])[:, kept]
            axes.plot([here, bend, there], ends, color=_LINE, linewidth=0.8, alpha=alpha)
        chosen = lineage.line[[here, there, there], lineage.chosen]
        axes.plot([here, bend, there], chosen, color=_CHOSEN)
    x = torch.tensor(states)[:, None].expand_as(surviving)
    _draw_dots(axes, x, numbers.expand_as(x), ~surviving, 0.35)
    _draw_dots(axes, x, numbers.expand_as(x), surviving, 1.0)
    dead = (~lineage.living).nonzero()[:, 0]
    axes.plot(torch.full_like(dead, states[-1]), dead, "x", color=_BEST, markersize=6)
    axes.plot(states, lineage.line[states, lineage.chosen], "o", color=_CHOSEN, markersize=4)
    axes.set_title("particles", loc="left")
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.invert_yaxis()


def _draw_dots(axes: Axes, x: Tensor, y: Tensor, which: Tensor, alpha: float) -> None:
    axes.plot(x[which], y[which], "o", color=_LINE, alpha=alpha, markersize=2.5, markeredgewidth=0)
