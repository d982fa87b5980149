"""Effects of mutations that add up in one hidden trait, which a curve turns into what is measured.

Source: Otwinowski, McCandlish and Plotkin (2018), PNAS 115, E7550 (global epistasis); the curve as
a sum of sigmoids that only rise is that of Sarkisyan et al. (2016), Nature 533:397, for the
fluorescence of avGFP. Theirs are fitted by likelihood, with the noise; ours by squared error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from diffreward.alphabets import ids_of
from diffreward.random import stream


class GlobalEpistasis(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predicts T numbers of a variant of one sequence.

    The trait of a variant is the sum of its letters' effects, less that of the wild type. Effects
    begin at 0, and decay pulls them there, so that a mutation that was never seen has the mean
    effect of those seen at its position, in part, and is neutral where none was.

    Args:
        wild_type: L letters.
        alphabet: the V symbols, in the order of the columns of the input.
        means: of the labels, one per output; an output is `mean + std * curve(trait)`.
        stds: of the labels, one per output.
        sigmoids: of each curve; more than one lets the curve be steep here and flat there.

    Raises:
        ValueError: if the wild type has other symbols, or there is not one std above 0 per mean.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        wild_type: str,
        alphabet: str,
        means: Sequence[float] = (0.0,),
        stds: Sequence[float] = (1.0,),
        sigmoids: int = 4,
    ) -> None:
        super().__init__()
        if len(means) != len(stds) or not means or min(stds) <= 0:
            raise ValueError(f"got means {list(means)} and stds {list(stds)}; expected one std > 0")
        tasks, ids = len(means), torch.tensor(ids_of([wild_type], alphabet)[0])
        self.effects = nn.Parameter(torch.zeros(len(wild_type), len(alphabet), tasks))
        # Most variants of a working protein are worse: the wild type begins high on the curve.
        self.centres = nn.Parameter(torch.linspace(-5, -1, sigmoids).repeat(tasks, 1))
        self.slopes = nn.Parameter(torch.ones(tasks, sigmoids))
        self.heights = nn.Parameter(torch.zeros(tasks, sigmoids))
        self.floors = nn.Parameter(torch.full((tasks,), -1.5))
        # Not among the weights: the config has them.
        rows = F.one_hot(ids, len(alphabet)).float()
        self.register_buffer("reference", rows, persistent=False)
        self.register_buffer("centre", torch.tensor(means, dtype=torch.float32), persistent=False)
        self.register_buffer("unit", torch.tensor(stds, dtype=torch.float32), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        """The predictions in the units of the labels, (B, T); they rise with each trait.

        Args:
            rows: (B, L, V) floating point, one-hot or relaxed.

        Raises:
            ValueError: if the shape is another.
        """
        traits = self.traits(rows)[..., None]
        sigmoids = (F.softplus(self.slopes) * (traits - self.centres)).sigmoid()
        curve = self.floors + (F.softplus(self.heights) * sigmoids).sum(-1)
        predictions: Tensor = self.centre + self.unit * curve
        return predictions

    def traits(self, rows: Tensor) -> Tensor:
        """The sums of effects, (B, T); 0 for the wild type."""
        if rows.ndim != 3 or rows.shape[1:] != self.reference.shape:
            expected = tuple(self.reference.shape)
            raise ValueError(f"expected rows (B, {expected[0]}, {expected[1]}), got {rows.shape}")
        # A product of matrices would be rounded under autocast; bright variants differ by little.
        traits: Tensor = ((rows - self.reference)[..., None] * self.effects).sum((1, 2))
        return traits


def fit_epistasis(
    network: GlobalEpistasis,
    ids: Tensor,
    labels: Tensor,
    epochs: int = 12,
    rate: float = 2e-2,
    decay: float = 0.1,
    seed: int = 0,
) -> float:
    """Fit a network in place, by AdamW on one cycle, and leave it in evaluation mode.

    Args:
        network: with the means and stds of the labels in its config.
        ids: variants, (N, L) int64.
        labels: (N, T), in the units of the outputs.
        epochs: passes over the variants.
        rate: the highest learning rate.
        decay: of the effects alone. On avGFP more of it orders the bright variants better and tells
            bright from dark worse.
        seed: of the order of the variants.

    Returns:
        The mean squared error of the last epoch, in variances of the labels.

    Raises:
        ValueError: if the numbers of variants and labels differ.
    """
    if len(ids) != len(labels):
        raise ValueError(f"got {len(ids)} variants and {len(labels)} labels")
    source, symbols = stream(seed, "batches"), network.reference.shape[1]
    curve = [p for p in network.parameters() if p is not network.effects]
    groups = [
        {"params": [network.effects], "weight_decay": decay},
        {"params": curve, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    steps = epochs * -(-len(ids) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1
    )
    network.train()
    for _ in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(ids), generator=source).split(_BATCH):
            predictions = network(F.one_hot(ids[chosen], symbols).float())
            loss = ((predictions - labels[chosen]) / network.unit).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
    network.eval()
    return total / len(ids)


_BATCH = 128
