"""Two sets to learn from, one better than the other as sets: what DRAGON contrasts.

Source: Bai et al. (2025), TMLR, arXiv:2504.15217: from two sets of samples of the same prompts a
positive and a negative one are made by exchanging samples of one prompt, such that a reward of the
whole set rises. The authors released no code; how the exchanges are found is ours. By default it is
one step: a sample counts by its influence on the value of all samples together, which is exact for
a mean of scores. Greedy exchanges, each measured, are exact in what they measure and cost a value
of the set each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from diffreward.gathering import gathered_rows

Value = Callable[[Tensor], float]
"""How good the set of some rows, (n,) int64, is; higher is better."""


def halves(groups: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets with the same number of samples of each group: rows, (n,) int64 each.

    Row i of one and row i of the other are of one group. What is left over of an odd number is in
    neither.

    Args:
        groups: (B,) int64, equal for samples of one prompt.
        scored: (B,) bool; the others are in neither set.
    """
    first, second = [], []
    for group in groups.unique():
        rows = ((groups == group) & scored).nonzero().squeeze(1)
        n = len(rows) // 2
        first.append(rows[:n])
        second.append(rows[n : 2 * n])
    return torch.cat(first), torch.cat(second)


@dataclass(frozen=True)
class Everyone:
    """The samples of all processes, which the sets are made of.

    Args:
        rows: embeddings, (N, R, D).
        credits: what each adds to the value of all, (N,), NaN = no score.
        groups: (N,) int64, equal for samples of one prompt.
        own: which of the N are this process's.
    """

    rows: Tensor
    credits: Tensor
    groups: Tensor
    own: slice

    @classmethod
    def gathered(cls, rows: Tensor, credits: Tensor, groups: Tensor) -> Everyone:
        """All processes call this with their own samples."""
        everyone = [gathered_rows(column.cpu()) for column in (rows, credits, groups)]
        (rows, own), (credits, _), (groups, _) = everyone
        return cls(rows, credits, groups, own)


def contrast(
    value: Value,
    credits: Tensor,
    sets: tuple[Tensor, Tensor],
    paired: bool,
    passes: int,
    generator: Generator,
) -> Tensor:
    """The sign of each sample: +1 in the positive set, -1 in the negative one, 0 in neither; (B,).

    The positive set is at least as good as the better of the two that it is made from. For a value
    that is a mean of `credits` and pairs, it is the better sample of each pair.

    Args:
        value: of a set of rows.
        credits: what each sample adds to the value of all of them together, (B,).
        sets: as `halves` gives them.
        paired: exchange samples of a pair only; else any sample of one set for any of the other.
        passes: of greedy exchanges after the first guess, until none helps; 0 for the guess alone.
        generator: draws the order of the exchanges.
    """
    first, second = sets
    starts = [_by_credit(credits, first, second, paired), (first, second), (second, first)]
    for _ in range(passes):
        starts = [_exchanged(value, *start, paired, generator) for start in starts]
    positive, negative = max(starts, key=lambda start: value(start[0]))
    signs = torch.zeros_like(credits)
    signs[positive], signs[negative] = 1.0, -1.0
    return signs


def _by_credit(
    credits: Tensor, first: Tensor, second: Tensor, paired: bool
) -> tuple[Tensor, Tensor]:
    if not paired:
        both = torch.cat([first, second])
        order = credits[both].argsort(descending=True, stable=True)
        better, worse = both[order].split(len(first))
        return better, worse
    exchanged = credits[second] > credits[first]
    return torch.where(exchanged, second, first), torch.where(exchanged, first, second)


def _exchanged(
    value: Value, positive: Tensor, negative: Tensor, paired: bool, generator: Generator
) -> tuple[Tensor, Tensor]:
    """The sets after each sample of the one was offered for one of the other, in a random order."""
    n, best = len(positive), value(positive)
    positive, negative = positive.clone(), negative.clone()
    if not paired:
        negative = negative[torch.randperm(n, generator=generator).to(negative.device)]
    for i in torch.randperm(n, generator=generator).tolist():
        positive[i], negative[i] = negative[i].clone(), positive[i].clone()
        found = value(positive)
        if found > best:
            best = found
        else:
            positive[i], negative[i] = negative[i].clone(), positive[i].clone()
    return positive, negative
