"""A network is fitted to the soft values of states whose ends are known.

The soft value of a state is V(x) = log E[exp(scale * reward(x_K)) | x] / scale.

Source: SVDD, Li et al. (2024), arXiv:2408.08252, soft value functions by Monte Carlo regression
(SVDD-MC); their alpha is our 1 / scale. Regression to the reward, as in their released code, gives
E[reward | x] instead, which is the soft value for small scales only. Our loss is
log(1 + exp(z)) + u log(1 + exp(-z)), with z = scale * (V - c) for the network's output and
u = exp(scale * (reward - c)), whose mean is 1: given x, its expected slope in z is
(exp(z) - E[u | x]) / (1 + exp(z)), which is zero at the soft value and nowhere else. The loss is
convex in z, and its slope lies between -u and 1. Linex, exp(scale * (reward - V)) + scale * V, has
the same minimiser and no such bounds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from diffreward.checks import check_scores
from diffreward.random import stream
from diffreward.steering.value.recording import Progress, RecordedStates

LOOKS = 20
"""How often a fit is compared with the samples that it does not see: each look costs a pass."""


@dataclass(frozen=True)
class Fit:
    """What a network was fitted to, and how well.

    Args:
        scale: in nats per unit of reward.
        offset: log E[exp(scale * reward)] / scale, in units of reward.
        samples: that had a reward.
        failures: samples that had none, and were left out.
        ess: effective size of the samples weighted by exp(scale * reward), in [1, samples]. If it
            is a few, nothing can be learned: take more samples or a smaller scale.
        loss: on the tenth of the samples that was not trained on.
        naive_loss: the same for a network that says 0 everywhere.
    """

    scale: float
    offset: float
    samples: int
    failures: int
    ess: float
    loss: float
    naive_loss: float


def fit_soft_value(
    states: RecordedStates,
    network: nn.Module,
    scale: float,
    *,
    updates: int = 2000,
    rows: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Fit:
    """Train a network; see `diffreward.steering.value.train_value`.

    Of the weights on the way those are kept that do best on the samples that are left out: the
    ends of a few samples are soon known by heart.

    Raises:
        TrainingError: if no sample has a reward, or all have the same.
        FloatingPointError: if the loss does not stay finite.
        ValueError: if a number is out of its range, or the network does not return (B,).
    """
    check_scale(scale)
    if updates < 1 or rows < 1:
        raise ValueError(f"got {updates} updates of {rows} rows; expected at least 1 of 1")
    check_scores(states.rewards)
    source = stream(seed, "fit")
    task = _Regression(states, network, scale, source)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    least, best = math.inf, network.state_dict()
    network.train()
    for update in range(1, updates + 1):
        drawn = torch.randint(len(task.seen), (rows,), generator=source)
        optimizer.zero_grad()
        task.losses(task.seen[drawn]).mean().backward()
        optimizer.step()
        schedule.step()
        if update % math.ceil(updates / LOOKS) == 0 or update == updates:
            loss = task.loss_unseen(rows)
            if loss < least:
                least, best = loss, copy.deepcopy(network.state_dict())
        if progress is not None:
            progress("fitting", update, updates)
    if math.isinf(least):
        raise FloatingPointError(f"no loss was finite: take a learning rate below {learning_rate}")
    network.load_state_dict(best)
    network.eval()
    return task.fit(least)


def check_scale(scale: float) -> None:
    """Is there a soft value at this scale?

    Raises:
        ValueError: if it is not positive and finite.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"got scale {scale}; a soft value has a positive and finite one")


class _Regression:
    """The losses of a network on recorded states, a tenth of whose samples it does not see."""

    def __init__(
        self, states: RecordedStates, network: nn.Module, scale: float, source: Generator
    ) -> None:
        self._states, self._network, self._scale = states, network, scale
        self._device = next(network.parameters()).device
        known = states.rewards.isfinite()
        self._samples = int(known.sum())
        log_w = scale * states.rewards.double()
        self._log_mean = log_w[known].logsumexp(0) - math.log(self._samples)
        self._log_u = (log_w - self._log_mean).masked_fill(~known, -math.inf)
        kept = known.nonzero()[:, 0][torch.randperm(self._samples, generator=source)]
        unseen = torch.isin(states.sample, kept[: max(1, self._samples // 10)])
        self.seen = (known[states.sample] & ~unseen).nonzero()[:, 0]
        self._unseen = unseen.nonzero()[:, 0]

    def losses(self, rows: Tensor) -> Tensor:
        """Of some states, (B,)."""
        states, sample = self._states, self._states.sample[rows]
        inputs = (states.x[rows], states.clean[rows], states.noise_to_signal[rows])
        x, clean, ratio = (value.to(self._device) for value in inputs)
        z = nats(self._network, x, clean, ratio, [states.prompts[i] for i in sample.tolist()])
        u = self._log_u[sample].exp().to(z)
        return F.softplus(z) + u * F.softplus(-z)

    @torch.no_grad()
    def loss_unseen(self, rows: int) -> float:
        """The mean loss on the samples that were left out."""
        self._network.eval()
        losses = [self.losses(block) for block in self._unseen.split(rows)]
        self._network.train()
        return torch.cat(losses).mean().item()

    def fit(self, loss: float) -> Fit:
        """The report on a fit that got to this loss."""
        naive = math.log(2) * (1 + self._log_u[self._states.sample[self._unseen]].exp().mean())
        return Fit(
            self._scale,
            float(self._log_mean) / self._scale,
            self._samples,
            len(self._log_u) - self._samples,
            math.exp(2 * self._log_u.logsumexp(0) - (2 * self._log_u).logsumexp(0)),
            loss,
            float(naive),
        )


def nats(
    network: nn.Module,
    x: Tensor,
    clean: Tensor,
    noise_to_signal: Tensor,
    prompts: Sequence[str],
) -> Tensor:
    """What a network says of B states, (B,).

    Raises:
        ValueError: if it does not say one number of each.
    """
    z: Tensor = network(x.float(), clean.float(), noise_to_signal, prompts)
    if z.shape != (len(x),):
        raise ValueError(
            f"{type(network).__name__} returned shape {tuple(z.shape)} for {len(x)} states; a "
            f"value network returns one number per state, shape ({len(x)},)"
        )
    return z
