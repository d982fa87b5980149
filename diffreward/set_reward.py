"""Rewards of a set of samples, with what each sample contributes to the value of the set.

A set is seen through an embedding: N rows of D features, which are a distribution. Its value V,
such as minus the distance to a reference, is a function of the rows and of their weights. What a
sample contributes is its influence, the derivative of V towards a set of this sample alone,

    I(x) = d/de V((1 - e) P + e delta_x) at e = 0,

whose mean over the set is zero. For a model p of the samples the gradient of V(p) is the mean of
I(x) times the gradient of log p(x), so that influences are rewards which any method can maximise.

Source: for the influence function, Hampel (1974), JASA 69, 383-393; for the values without a
sample, the jackknife, Quenouille (1956), Biometrika 43, 353-360.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from diffreward.adaptive import Adaptive
from diffreward.embedding import Embedding, EmbeddingFunction
from diffreward.gathering import gathered_rows
from diffreward.reward import Reward, RewardError, RewardFunction, name_of, score
from diffreward.samples import Samples

Credit = Literal["influence", "leave_one_out", "marginal"]


class SetReward(Adaptive):
    """The value of the set of all samples that are scored together, and each one's part in it.

    The mean of the scores of a set is its value, and the gradient of the mean is that of the value;
    how they differ is what the samples contribute.

    Where several processes train, the set is that of all of them. They then have to score equally
    often: for methods that score their samples in parts, give each process equally many.

    Args:
        embedding: in what the samples are seen.
        credit: what a sample contributes: its ``"influence"``, or ``"leave_one_out"``, n - 1 times
            the value of the set less the value without the sample, or ``"marginal"``, n + 1 times
            the value of the n samples of the bank with it less their value. They agree for large
            sets of one law. Without a past, the marginal contribution is that to the others.
        bank: rows of past rounds, the newest ones, which join the set in training: they do not
            change, and make a distance to a reference less noisy. In evaluation a set is alone.

    Raises:
        ValueError: if there is no such credit, the bank is negative, or none for the marginal.
    """

    fewest_rows: int = 2
    """Of a set that has a value. The samples of a smaller one have no score."""

    def __init__(
        self, embedding: Embedding | EmbeddingFunction, credit: Credit = "influence", bank: int = 0
    ) -> None:
        if credit not in get_args(Credit):
            raise ValueError(f"credit is one of {', '.join(get_args(Credit))}; got {credit!r}")
        if bank < 0:
            raise ValueError(f"bank is at least 0 rows, got {bank}")
        if credit == "marginal" and not bank:
            raise ValueError("credit='marginal' is what a sample adds to the bank: set bank > 0")
        self.embedding = embedding
        self.credit = credit
        self.bank = bank
        self._past: Tensor | None = None
        self._seen: list[Tensor] = []

    @abstractmethod
    def value(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """The value of a set, (), in the dtype of its rows; higher is better.

        Differentiable in rows and weights where it is smooth.

        Args:
            rows: (N, D), at least `fewest_rows`.
            weights: (N,), of sum 1; equal if not given.
        """

    def rows(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """The rows of B samples, (B, R, D), in float32 or float64; NaN in those without a score.

        Raises:
            RewardError: if the embedding returns something else.
        """
        rows: Tensor = self.embedding(samples, prompts)
        if rows.ndim != 3 or len(rows) != len(prompts) or not rows.is_floating_point():
            raise RewardError(
                f"{name_of(self.embedding)} returned {rows.dtype} of shape {tuple(rows.shape)}; an "
                f"embedding returns floating point numbers, ({len(prompts)}, rows, features)"
            )
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return self.scores(self.rows(samples, prompts))

    def scores(self, rows: Tensor) -> Tensor:
        """The value of the set plus the credit of each sample, (B,) float32.

        Args:
            rows: (B, R, D), those of this process. A sample with a row that is not finite has no
                score, and the set is without it.
        """
        everyone, own = gathered_rows(rows)
        scored = everyone.isfinite().flatten(1).all(1)
        chosen = everyone[scored]
        if self.adapting and self.bank:
            self._seen.append(chosen.detach().flatten(0, 1))
        # NaN with a graph: a part of the samples without a score still is differentiable.
        scores = everyone.flatten(1).sum(1) + torch.nan
        past = self._fixed(chosen)
        n = chosen.shape[0] * chosen.shape[1]
        left_out = 0 if self.credit == "influence" else chosen.shape[1]
        if len(chosen) and n + len(past) - left_out >= self.fewest_rows:
            with torch.autocast(rows.device.type, enabled=False):
                value = self.value(torch.cat([chosen.flatten(0, 1), past]))
                credits = self.credits(chosen)
            # The rows of the past and of other processes stand still in this graph; in the mean of
            # the gradients of all processes all rows move.
            moving = max(1, int(scored[own].sum()) * rows.shape[1])
            fixed, scale = value.detach(), (n + len(past)) / moving
            scores[scored] = fixed + scale * (value - fixed) + credits
        return scores[own].float()

    @torch.no_grad()
    def credits(self, rows: Tensor) -> Tensor:
        """What each of the B samples of a set contributes, (B,), mean zero, without gradient.

        Args:
            rows: (B, R, D), those of the whole set.
        """
        past = self._fixed(rows)
        size = len(past) / rows.shape[1]
        if self.credit == "influence":
            credits = self.influences(rows, past)
        elif self.credit == "marginal" and len(past):
            credits = (size + 1) * self.values_with_each(rows, past)
        else:
            credits = (1 - len(rows) - size) * self.values_without_each(rows, past)
        return credits - credits.mean()

    def values_without_each(self, rows: Tensor, past: Tensor) -> Tensor:
        """The values of the set without one sample after the other, (B,), without gradient.

        Args:
            rows: (B, R, D), those of the whole set.
            past: (M, D), of samples that are never left out.
        """
        kept = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        return torch.stack([self.value(torch.cat([rows[k].flatten(0, 1), past])) for k in kept])

    def values_with_each(self, rows: Tensor, past: Tensor) -> Tensor:
        """The values of the past with one sample after the other, (B,), without gradient.

        Args:
            rows: (B, R, D), those of the whole set.
            past: (M, D), what each is added to.
        """
        return torch.stack([self.value(torch.cat([one, past])) for one in rows])

    def influences(self, rows: Tensor, past: Tensor) -> Tensor:
        """The influence of each sample, (B,), up to a constant, without gradient.

        That of a sample is the mean over its rows of the derivatives of the value to the weights.

        Args:
            rows: (B, R, D), those of the whole set.
            past: (M, D), rows that belong to no sample.
        """
        b, r, _ = rows.shape
        with torch.inference_mode(False), torch.enable_grad():
            # What was made in inference mode cannot be kept for a gradient; a copy can.
            pool = torch.cat([rows.detach().flatten(0, 1), past]).clone()
            weights = torch.full_like(pool[:, 0], 1 / len(pool)).requires_grad_()
            (slopes,) = torch.autograd.grad(self.value(pool, weights), weights)
        return slopes[: b * r].reshape(b, r).mean(1)

    def _fixed(self, rows: Tensor) -> Tensor:
        """The rows of the past that join a set now, (M, D)."""
        past = self._past if self.adapting else None
        return rows.new_empty(0, rows.shape[2]) if past is None else past.to(rows)

    def advance(self) -> None:
        # All processes have seen the same rows: those of all.
        rows = [*([] if self._past is None else [self._past]), *(r.cpu() for r in self._seen)]
        if rows:
            self._past = torch.cat(rows)[-self.bank :].clone()
        self._seen = []

    def tensors(self) -> dict[str, Tensor]:
        return {} if self._past is None else {"bank": self._past}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._past = tensors.get("bank")


class MeanScore(SetReward):
    """A reward of single samples as one of sets: the mean of their scores.

    Each sample is one row of one number, its score; its credit is the score less the mean.

    Args:
        reward: of single samples.
    """

    fewest_rows = 1

    def __init__(self, reward: Reward | RewardFunction) -> None:
        super().__init__(self._score)
        self.reward = reward

    def value(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        return rows.mean() if weights is None else weights @ rows[:, 0]

    def _score(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return score(self.reward, samples, prompts).reshape(-1, 1, 1)


def as_set_reward(reward: Reward | RewardFunction) -> SetReward:
    """The reward itself if it is of sets; else the mean of its scores."""
    return reward if isinstance(reward, SetReward) else MeanScore(reward)
