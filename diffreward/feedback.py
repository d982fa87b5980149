"""From scores to what a loss needs: advantages, weights, labels and preference pairs.

Who is winner and who is loser is decided here and nowhere else. Scores are compared only within a
group (the samples of one prompt); a sample without a score (NaN) gets advantage 0, weight 0, label
0 and no pair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "batch", "global", "none"]


def group_mean(values: Tensor, groups: Tensor) -> Tensor:
    """The mean of each sample's group over its scored samples, (B,); NaN where none is scored."""
    index = _index(groups)
    scored = values.isfinite()
    zeros = values.new_zeros(int(index.max()) + 1)
    total = zeros.index_add(0, index, values.masked_fill(~scored, 0))
    count = zeros.index_add(0, index, scored.to(values.dtype))
    return (total / count)[index]


def advantages(scores: Tensor, groups: Tensor, scale: Scale = "group") -> Tensor:
    """How much better each sample is than its group's mean.

    Args:
        scores: (B,), NaN = no score.
        groups: (B,) int64, equal for samples of one prompt.
        scale: divide by the standard deviation of the group, or by the root mean square deviation
            from the group means over the whole batch (all processes), or the standard deviation of
            all scores of the batch ("global"), or not at all. A group (or batch) whose scores are
            all equal has advantage 0, not noise divided by almost 0.

    Returns:
        (B,) float32; mean 0 in each group; 0 for samples without a score.
    """
    centred = scores - group_mean(scores, groups)
    squares = centred.square()
    if scale == "none":
        deviation = torch.ones_like(scores)
    elif scale == "group":
        deviation = group_mean(squares, groups).sqrt()
    elif scale == "batch":
        deviation = mean_over_processes(squares).sqrt().expand_as(scores)
    else:
        away = scores - mean_over_processes(scores)
        deviation = mean_over_processes(away.square()).sqrt().expand_as(scores)
    negligible = deviation <= 1e-6 * scores.abs().nan_to_num(0).max()
    return (centred / deviation).masked_fill(negligible | ~scores.isfinite(), 0.0)


def optimality(scores: Tensor, groups: Tensor, scale: Scale, clip: float) -> Tensor:
    """Advantages mapped linearly from [-clip, clip] to [0, 1], (B,); NaN = no score.

    Source: Zheng et al. (2025), arXiv:2509.16117, who read it as the probability that a sample is
    optimal.
    """
    advantage = advantages(scores, groups, scale).clamp(-clip, clip)
    return (0.5 + 0.5 * advantage / clip).masked_fill(~scores.isfinite(), torch.nan)


def labels(scores: Tensor, groups: Tensor, threshold: float | None = None) -> Tensor:
    """Which samples are desirable: +1 above the threshold, -1 below, 0 at it or without a score.

    Args:
        scores: (B,), NaN = no score.
        groups: (B,) int64, equal for samples of one prompt.
        threshold: the mean of the sample's group if not given.
    """
    reference = group_mean(scores, groups) if threshold is None else threshold
    return (scores - reference).sign().nan_to_num(0.0)


def even_weights(counted: Tensor, groups: Tensor) -> Tensor:
    """Weights that make a sum a mean over the counted samples of each group, then over groups.

    Args:
        counted: (B,) bool; the others get weight 0.
        groups: (B,) int64, equal for samples of one prompt. One without a counted sample counts,
            with nothing to add.

    Returns:
        (B,) float32.
    """
    index, flags = _index(groups), counted.float()
    num_groups = int(index.max()) + 1
    count = flags.new_zeros(num_groups).index_add(0, index, flags)
    return flags / (count[index].clamp(min=1) * num_groups)


def softmax_weights(scores: Tensor, groups: Tensor, beta: float) -> Tensor:
    """The softmax of score / beta within each group, divided by the number of groups, (B,)."""
    weights, each = torch.zeros_like(scores), groups.unique()
    for group in each:
        rows = ((groups == group) & scores.isfinite()).nonzero().squeeze(1)
        weights[rows] = (scores[rows] / beta).softmax(0) / len(each)
    return weights


def exponential_weights(scores: Tensor, groups: Tensor, beta: float) -> Tensor:
    """Even weights times exp(score / beta), (B,)."""
    scored = scores.isfinite()
    tilt = (scores.masked_fill(~scored, 0.0) / beta).exp()
    return even_weights(scored, groups).to(scores) * tilt


def best(scores: Tensor, groups: Tensor) -> Tensor:
    """The row of the best sample of each group, (G,) int64; of any sample where none is scored."""
    ranked = scores.masked_fill(~scores.isfinite(), -torch.inf)
    rows = [(groups == group).nonzero().squeeze(1) for group in groups.unique()]
    return torch.stack([own[ranked[own].argmax()] for own in rows])


@dataclass(frozen=True)
class Pairs:
    """M preference pairs among B samples.

    Args:
        winner: rows of the preferred samples, (M,) int64.
        loser: rows of the others, (M,) int64; always of the winner's group.
        margin: score of the winner minus score of the loser, (M,), > 0.
        weight: (M,), such that a sum over the pairs of a group is their mean, and a sum over all
            is a mean over groups; groups without a pair count, with nothing to add.
    """

    winner: Tensor
    loser: Tensor
    margin: Tensor
    weight: Tensor

    def involved(self) -> tuple[Tensor, Pairs]:
        """The R samples that are in a pair, (R,) int64 ascending, and the pairs among these."""
        both = torch.cat([self.winner, self.loser])
        rows, position = both.unique(return_inverse=True)
        winner, loser = position.split(len(self.winner)) if len(both) else (both, both)
        return rows, replace(self, winner=winner, loser=loser)


def all_pairs(scores: Tensor, groups: Tensor) -> Pairs:
    """Every pair of samples of a group whose scores differ."""
    better = (scores[:, None] > scores[None, :]) & (groups[:, None] == groups[None, :])
    winner, loser = better.nonzero(as_tuple=True)
    return _pairs(scores, groups, winner, loser)


def best_and_worst(scores: Tensor, groups: Tensor) -> Pairs:
    """One pair per group: its best against its worst sample; none where all are equal."""
    winners, losers = [], []
    for group in groups.unique():
        rows = ((groups == group) & scores.isfinite()).nonzero().squeeze(1)
        if len(rows) and scores[rows].max() > scores[rows].min():
            winners.append(rows[scores[rows].argmax()])
            losers.append(rows[scores[rows].argmin()])
    if not winners:
        nothing = groups.new_zeros(0)
        return _pairs(scores, groups, nothing, nothing)
    return _pairs(scores, groups, torch.stack(winners), torch.stack(losers))


def matched(signs: Tensor, scores: Tensor, groups: Tensor) -> Pairs:
    """Pairs of a positive and a negative sample of one group, as many as there are of both.

    Args:
        signs: +1, -1, or 0 for samples that are in no pair, (B,).
        scores: (B,); the winner of a pair is positive, whatever its score.
        groups: (B,) int64.
    """
    winners, losers = [], []
    for group in groups.unique():
        positive, negative = (
            ((groups == group) & (signs == sign)).nonzero().squeeze(1) for sign in (1, -1)
        )
        n = min(len(positive), len(negative))
        winners.append(positive[:n])
        losers.append(negative[:n])
    return _pairs(scores, groups, torch.cat(winners), torch.cat(losers))


def _pairs(scores: Tensor, groups: Tensor, winner: Tensor, loser: Tensor) -> Pairs:
    index = _index(groups)
    num_groups = int(index.max()) + 1
    of_pair = index[winner]
    count = torch.bincount(of_pair, minlength=num_groups)
    weight = 1 / (count[of_pair].to(scores.dtype) * num_groups)
    return Pairs(winner, loser, scores[winner] - scores[loser], weight)


def _index(groups: Tensor) -> Tensor:
    """Groups renumbered 0, 1, ... without gaps."""
    index: Tensor = groups.unique(return_inverse=True)[1]
    return index


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of the finite values of all processes, ()."""
    from accelerate.utils import reduce

    finite = values[values.isfinite()]
    moments = torch.stack([finite.sum(), finite.new_tensor(len(finite))])
    summed: Tensor = reduce(moments, reduction="sum")
    return summed[0] / summed[1]
