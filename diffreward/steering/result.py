"""What a steered call leaves behind, whoever owned the loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffreward.random import Source
from diffreward.samples import Samples
from diffreward.steering.methods import Cost, FKSteering
from diffreward.steering.resampling import winner
from diffreward.steering.smc import Cloud

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Steered:
    """G prompts, N particles of each, and how they came about.

    Args:
        prompts: the G prompts.
        samples: the chosen sample of each prompt, G.
        chosen: its particle, (G,).
        particles: all finished samples, G * N, prompt by prompt.
        rewards: of them, (G, N) float64; NaN where the reward failed.
        history: rewards of the clean predictions on the way: pairs of the move before which they
            were scored and (G, N).
        cloud: weights, evidence, effective sample sizes and ancestors; see `Cloud`.
        failures: scores that were NaN, per prompt, on the way and at the end, (G,).
        cost: rows and seconds.
        outputs: all finished particles in the class that the sampler returns.
    """

    prompts: tuple[str, ...]
    samples: Samples
    chosen: Tensor
    particles: Samples
    rewards: Tensor
    history: tuple[tuple[int, Tensor], ...]
    cloud: Cloud[Any]
    failures: Tensor
    cost: Cost
    outputs: Any

    @property
    def ess(self) -> Tensor:
        """Effective sample size before each selection, and at the end, (T + 1, G), in [1, N]."""
        return self.cloud.ess

    @property
    def log_evidence(self) -> Tensor | None:
        """Estimate of log E[exp(scale * reward)] under the model, (G,), in nats.

        None if the resampling scheme is not consistent, so for a search.
        """
        return self.cloud.log_evidence

    @property
    def lineage(self) -> Tensor:
        """The particle that each one came from, at each move, (T, G, N)."""
        return self.cloud.ancestors

    @property
    def weights(self) -> Tensor:
        """Of the finished particles, normalised in each prompt, (G, N)."""
        return self.cloud.weights

    def all_particles(self) -> Any:
        """All G * N finished particles, prompt by prompt, as the sampler returns samples."""
        return self.outputs

    def plot(self, prompt: int = 0) -> Figure:
        """Rewards, effective sample size and family tree of one prompt, over its steps.

        Points are particles, lines lead to what they became; those without living descendants are
        pale, and the ancestry of the chosen sample is blue. A cross is a finished particle with no
        weight. Of a long tree only states are drawn at which particles were replaced.

        Args:
            prompt: its number, 0, ..., G - 1.

        Raises:
            IndexError: if there is no such prompt.
        """
        from diffreward.steering.lineage import draw

        return draw(self, prompt)

    def write_html(self, path: str | Path) -> Path:
        """Write a page that shows all particles with their rewards and weights, and `plot`.

        It needs no other file and no network. Images of more than 128 pixels are scaled down, and
        of many large samples only those are embedded that a browser can open, the chosen first.

        Returns:
            The page.
        """
        from diffreward.steering.gallery import write

        return write(self, Path(path))


def choose(settings: FKSteering, cloud: Cloud[Any], rewards: Tensor, source: Source) -> Tensor:
    """The particle of each prompt that is returned, (G,): see `FKSteering.select`."""
    if settings.select == "draw":
        return winner(cloud.weights, source)[:, 0]
    # Dead particles may have a reward, and living ones always have.
    return rewards.masked_fill(cloud.log_weights == -torch.inf, -torch.inf).argmax(1)
