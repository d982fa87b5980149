"""Training of a regressor: a held-out share of the data decides when to stop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from diffreward.oracles.regressor import SequenceRegressor, reverse_complement
from diffreward.random import stream

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps predictions (B, T) and targets (B, T) to a number."""


@dataclass(frozen=True)
class Plan:
    """How a regressor is trained.

    Args:
        epochs: passes over the training share, at most.
        batch: sequences per step.
        rate: highest learning rate of AdamW; falls to zero on one cycle.
        weight_decay: of AdamW.
        shift: largest shift of a sequence to either side, in symbols; what moves in is unknown, a
            row of zeros.
        patience: epochs without a better validation correlation after which training ends.
        validation: share of the groups held out.
        seed: of the split, the order, the shifts and the strands; weights are the caller's.

    Raises:
        ValueError: if a number is out of its range.
    """

    epochs: int = 25
    batch: int = 64
    rate: float = 5e-3
    weight_decay: float = 0.05
    shift: int = 8
    patience: int = 20
    validation: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.patience) < 1 or self.shift < 0:
            raise ValueError(f"got {self}; epochs, batch and patience are at least 1, shift 0")
        if not 0 < self.validation < 1:
            raise ValueError(f"the validation share is between 0 and 1, got {self.validation}")


@dataclass(frozen=True)
class Fit:
    """What training saw: the best epoch and the validation Pearson correlation of each epoch."""

    best_epoch: int
    validation: tuple[float, ...]


def train_regressor(
    network: SequenceRegressor,
    rows: Tensor,
    labels: Tensor,
    groups: Sequence[object],
    plan: Plan | None = None,
    loss: Loss = F.mse_loss,
) -> Fit:
    """Train a network in place and leave it, in evaluation mode, as it was at its best epoch.

    Judged, kept and returned are moving averages of the weights.

    Args:
        network: with the means and stds of the labels in its config.
        rows: (N, L, V) floating point.
        labels: (N, T), in the units of the outputs.
        groups: N labels of what belongs together, such as the element of both of its orientations:
            a group is on one side of the split.
        plan: the defaults if None.
        loss: of predictions and labels, both in standard deviations from the mean.

    Raises:
        ValueError: if the numbers of rows, labels and groups differ, or one side of the split is
            without a group.
    """
    plan = plan or Plan()
    if not len(rows) == len(labels) == len(groups):
        raise ValueError(f"got {len(rows)} rows, {len(labels)} labels and {len(groups)} groups")
    train, held = split(groups, plan.validation, plan.seed)
    targets = (labels - network.centre) / network.unit
    source = stream(plan.seed, "batches")
    learner = _Learner(network, plan, -(-len(train) // plan.batch))
    scores: list[float] = []
    best, weights = 0, learner.average.state_dict()
    for epoch in range(plan.epochs):
        network.train()
        for chosen in train[torch.randperm(len(train), generator=source)].split(plan.batch):
            seen = _augmented(network, rows[chosen], plan.shift, source)
            learner.step(loss(network.one_strand(seen), targets[chosen]))
        predictions = predict(learner.average, rows[held])
        scores.append(pearson(predictions, labels[held]).mean().item())
        if epoch == 0 or scores[epoch] > scores[best]:
            best, weights = epoch, copy.deepcopy(learner.average.state_dict())
        if epoch - best >= plan.patience:
            break
    network.load_state_dict(weights)
    network.eval()
    return Fit(best, tuple(scores))


class _Learner:
    """AdamW on one cycle of the learning rate, and the moving average of the weights."""

    def __init__(self, network: SequenceRegressor, plan: Plan, steps: int) -> None:
        self.average = copy.deepcopy(network)
        self._network = network
        # The average remembers about two epochs.
        self._share = 1 / (2 * steps)
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=plan.rate, weight_decay=plan.weight_decay
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, plan.rate, total_steps=plan.epochs * steps, pct_start=0.1
        )

    def step(self, loss: Tensor) -> None:
        """Follow the gradient of a loss, and let the average follow the weights."""
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        with torch.no_grad():
            current = self._network.state_dict()
            for name, mean in self.average.state_dict().items():
                if mean.is_floating_point():
                    mean.lerp_(current[name], self._share)
                else:
                    mean.copy_(current[name])


def _augmented(
    network: SequenceRegressor, rows: Tensor, shift: int, source: torch.Generator
) -> Tensor:
    moved = shifted(rows, shift, source)
    if not network.config.both_strands:
        return moved
    # One strand of each per step costs half of both, and the order of strands carries nothing.
    turned = torch.rand(len(moved), 1, 1, generator=source) < 0.5
    return torch.where(turned, reverse_complement(moved), moved)


def split(groups: Sequence[object], share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The rows of the training and of the held-out groups, two index tensors."""
    names = list(dict.fromkeys(groups))
    order = torch.randperm(len(names), generator=stream(seed, "split")).tolist()
    out = {names[i] for i in order[: round(share * len(names))]}
    held = torch.tensor([group in out for group in groups])
    if held.all() or not held.any():
        raise ValueError(f"a share of {share} of {len(names)} groups leaves a side empty")
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def shifted(rows: Tensor, largest: int, source: torch.Generator) -> Tensor:
    """Each sequence moved by its own number of symbols in [-largest, largest], (B, L, V)."""
    n, length, _ = rows.shape
    padded = F.pad(rows, (0, 0, largest, largest))
    starts = torch.randint(2 * largest + 1, (n, 1), generator=source)
    return padded[torch.arange(n)[:, None], starts + torch.arange(length)]


@torch.no_grad()
def predict(network: SequenceRegressor, rows: Tensor, batch: int = 512) -> Tensor:
    """The predictions of a network in evaluation mode, (N, T)."""
    network.eval()
    return torch.cat([network(part) for part in rows.split(batch)])


def pearson(predictions: Tensor, labels: Tensor) -> Tensor:
    """The correlation of each column, (T,), NaN where one is constant."""
    pairs = zip(predictions.T, labels.T, strict=True)
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])
