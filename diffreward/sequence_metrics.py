"""Measures of a set of sequences, beside the reward: is it like real ones, diverse and new?

Source: section 6.1 and the released evaluation of Wang et al. (2025), DRAKES, ICLR,
arXiv:2410.13643, for the two correlations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffreward.alphabets import one_hot
from diffreward.enumeration import number
from diffreward.samples import Tokens

_ROWS = 256
"""Sequences that are compared with a reference at once."""


def kmer_correlation(samples: Tokens, reference: Tokens, k: int = 3) -> float:
    """Pearson correlation of the counts of k-mers in two sets, in [-1, 1].

    Over the k-mers that occur in either, all sequences of a set together. The sizes of the sets do
    not matter; NaN if all counts of a set are equal.

    Args:
        samples: hard or relaxed, by the largest weight.
        reference: for DRAKES' 3-mer correlation, the training sequences with the activity above
            its 99.9 % quantile.
        k: letters of a word.

    Raises:
        ValueError: if the alphabets differ, or sequences are shorter than k.
    """
    first, second = (_kmers(each, k, samples.alphabet) for each in (samples, reference))
    union = (first + second) > 0
    return _pearson(first[union], second[union])


def motif_correlation(counts: Tensor, reference: Tensor) -> float:
    """Spearman correlation of how often motifs occur in two sets, in [-1, 1].

    Over the motifs that occur in both sets, as the released code has it, which drops the others.
    NaN if these are fewer than two.

    Args:
        counts: hits in each sequence, (n, M), as `diffreward.rewards.motifs.Motifs.counts` gives.
        reference: the same for the other set, (m, M).

    Raises:
        ValueError: if the two are not of as many motifs.
    """
    if counts.shape[1] != reference.shape[1]:
        raise ValueError(f"got counts of {counts.shape[1]} and of {reference.shape[1]} motifs")
    first, second = counts.sum(0).double(), reference.sum(0).double()
    both = (first > 0) & (second > 0)
    return _pearson(_ranks(first[both]), _ranks(second[both]))


def diversity(samples: Tokens) -> float:
    """1 minus the mean identity of all pairs of samples, in [0, 1]; L times it is their distance.

    The identity is the share of positions with the same letter, the cosine of the one-hot rows.
    Uniform letters have 1 - 1 / V. NaN for fewer than two samples.
    """
    letters = _hard(samples, samples.alphabet).double()
    n, length = letters.shape[:2]
    if n < 2:
        return float("nan")
    alike = letters.sum(0)
    return 1 - float((alike * (alike - 1)).sum()) / (n * (n - 1) * length)


def gc_content(samples: Tokens) -> Tensor:
    """The share of G and C in each sequence, (B,) float32, in [0, 1].

    Raises:
        ValueError: if the alphabet has no G or no C.
    """
    if not set("GC") <= set(samples.alphabet):
        raise ValueError(f"there is no G or no C in {samples.alphabet}")
    columns = [samples.alphabet.index(letter) for letter in "GC"]
    return _hard(samples, samples.alphabet)[..., columns].sum(-1).mean(1)


def novelty(samples: Tokens, reference: Tokens) -> Tensor:
    """How far each sample is from the nearest reference, (B,) float32: the share of other letters.

    Letters are compared at the same positions, without alignment. 0 is a copy.

    Raises:
        ValueError: if the alphabets or the lengths differ.
    """
    queries = _hard(samples, samples.alphabet)
    known = _hard(reference, samples.alphabet)
    if known.shape[1] != queries.shape[1]:
        raise ValueError(f"got sequences of {queries.shape[1]} and of {known.shape[1]} letters")
    nearest = torch.stack(
        [(queries.flatten(1) @ rows.flatten(1).T).amax(1) for rows in known.split(_ROWS)]
    )
    return 1 - nearest.amax(0) / queries.shape[1]


def _hard(samples: Tokens, alphabet: str) -> Tensor:
    """One-hot rows, (B, L, V) float32; relaxed tokens by their largest weight."""
    letters = one_hot(samples, alphabet)
    return torch.zeros_like(letters).scatter_(2, letters.argmax(2, keepdim=True), 1.0)


def _kmers(samples: Tokens, k: int, alphabet: str) -> Tensor:
    """The counts over all sequences, (V^k,) float64."""
    letters = one_hot(samples, alphabet).argmax(-1)
    if letters.shape[1] < k:
        raise ValueError(f"sequences of {letters.shape[1]} letters have no words of {k}")
    words = number(letters.unfold(1, k, 1), len(alphabet))
    return torch.bincount(words.flatten(), minlength=len(alphabet) ** k).double()


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1, (n,) float64; equal values share the mean of theirs."""
    _, place, times = values.unique(return_inverse=True, return_counts=True)
    last = times.cumsum(0).double()
    ranks: Tensor = (last - (times - 1) / 2)[place]
    return ranks


def _pearson(a: Tensor, b: Tensor) -> float:
    """In [-1, 1]; NaN if one of the two does not vary."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()))
