"""How a steered call went: a page with all particles."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffreward.charts import inline
from diffreward.exhibits import Media, media
from diffreward.report import write_page
from diffreward.steering.lineage import VARIABLES, Lineage, draw

if TYPE_CHECKING:
    from markupsafe import Markup

    from diffreward.steering.result import Steered

_SIDE = 256
"""Of the images that are too large to be embedded as they are, in pixels."""
_BUDGET = 64_000_000
"""Characters of embedded samples; a browser is slow to open a page that is much larger."""


@dataclass(frozen=True)
class Exhibit:
    """A finished particle as the page shows it."""

    number: int
    media: Media
    reward: float
    weight: float
    living: bool
    chosen: bool

    def rank(self) -> tuple[bool, float]:
        """Higher is better; the dead come behind the living, and of them those without a score."""
        return self.living, -math.inf if math.isnan(self.reward) else self.reward


@dataclass(frozen=True)
class Family:
    """The particles of one prompt as the page shows them, the best first and the dead last."""

    prompt: str
    exhibits: Sequence[Exhibit]
    chosen: Exhibit
    chart: Markup
    mean: float
    ess: float
    origins: int
    failures: int
    log_evidence: float | None


def write(steered: Steered, path: Path) -> Path:
    """Write the page of a result: see `Steered.write_html`."""
    embedded, particles = _embedded(steered), steered.rewards.shape[1]
    selections = (steered.lineage != torch.arange(particles)).any(2).sum()
    values: dict[str, Any] = {
        "families": [_family(steered, g, embedded) for g in range(len(steered.prompts))],
        "particles": particles,
        "steps": len(steered.lineage),
        "scored": [state for state, _ in steered.history],
        "selections": int(selections),
        "cost": steered.cost,
        "ess": float(steered.ess.min()),
        "failures": int(steered.failures.sum()),
        "chosen": steered.rewards.gather(1, steered.chosen[:, None]).mean().item(),
        "mean": steered.rewards.nanmean(1).mean().item(),
    }
    return write_page(path, Path(__file__).with_name("gallery.html.j2"), values)


def _embedded(steered: Steered) -> list[Media]:
    """All particles, in their order; those that were chosen are never what is left out."""
    rows = range(len(steered.particles))
    n, budget = steered.rewards.shape[1], _BUDGET
    found = [Media("missing", "too large for this page")] * len(rows)
    with tempfile.TemporaryDirectory() as folder:
        names = steered.particles.write(Path(folder))
        for row in sorted(rows, key=lambda row: row % n != steered.chosen[row // n]):
            one = media(Path(folder) / names[row], _SIDE)
            if len(one.content) <= budget:
                budget -= len(one.content)
                found[row] = one
    return found


def _family(steered: Steered, g: int, embedded: Sequence[Media]) -> Family:
    n, lineage = steered.rewards.shape[1], Lineage.of(steered, g)
    exhibits = [
        Exhibit(
            i,
            embedded[g * n + i],
            steered.rewards[g, i].item(),
            steered.weights[g, i].item(),
            bool(lineage.living[i]),
            i == lineage.chosen,
        )
        for i in range(n)
    ]
    evidence = steered.log_evidence
    return Family(
        steered.prompts[g],
        sorted(exhibits, key=Exhibit.rank, reverse=True),
        exhibits[lineage.chosen],
        inline(draw(steered, g), VARIABLES),
        steered.rewards[g].nanmean().item(),
        lineage.ess.min().item(),
        len(lineage.line[0, lineage.living].unique()),
        int(steered.failures[g]),
        None if evidence is None else evidence[g].item(),
    )
