"""Measures of sets of sequences: against brute force on all pairs, and SciPy."""

import math
from collections import Counter
from itertools import combinations

import pytest
import torch

from diffreward.alphabets import DNA, PROTEIN, ids_of
from diffreward.random import stream
from diffreward.samples import Tokens
from diffreward.sequence_metrics import (
    diversity,
    gc_content,
    kmer_correlation,
    motif_correlation,
    novelty,
)


def dna(*strings: str) -> Tokens:
    return Tokens(torch.tensor(ids_of(strings, DNA)), DNA)


def random_dna(n: int, length: int = 12, seed: int = 0) -> Tokens:
    return Tokens(torch.randint(4, (n, length), generator=stream(seed)), DNA)


def words(samples: Tokens, k: int) -> Counter[str]:
    return Counter(s[i : i + k] for s in samples.strings() for i in range(len(s) - k + 1))


@pytest.mark.parametrize("k", [1, 3])
def test_kmer_correlation_is_that_of_counts_over_the_union(k: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    samples, reference = random_dna(3, 9, seed=1), random_dna(5, 20, seed=2)
    first, second = words(samples, k), words(reference, k)
    union = sorted({*first, *second})
    assert k == 1 or len(union) < 64
    expected = stats.pearsonr([first[w] for w in union], [second[w] for w in union])[0]
    assert kmer_correlation(samples, reference, k) == pytest.approx(expected)


def test_kmer_correlation_does_not_depend_on_the_size_of_the_sets() -> None:
    samples, reference = random_dna(4), random_dna(6, seed=1)
    thrice = Tokens(reference.ids.repeat(3, 1), DNA)
    assert kmer_correlation(samples, thrice) == pytest.approx(kmer_correlation(samples, reference))
    assert kmer_correlation(reference, thrice) == pytest.approx(1.0)


def test_the_words_of_other_sequences_correlate_negatively() -> None:
    # Union of AAA (2 times here) and CCC (2 times there): a line downwards.
    assert kmer_correlation(dna("AAAA"), dna("CCCC")) == pytest.approx(-1.0)


def test_motif_correlation_is_that_of_ranks_of_motifs_in_both() -> None:
    stats = pytest.importorskip("scipy.stats")
    counts = torch.randint(3, (4, 30), generator=stream(0))
    reference = torch.randint(3, (6, 30), generator=stream(1))
    counts[:, :3], reference[:, 5:8] = 0, 0
    both = (counts.sum(0) > 0) & (reference.sum(0) > 0)
    assert 2 < int(both.sum()) <= 24
    first, second = (each.sum(0)[both].numpy() for each in (counts, reference))
    expected = stats.spearmanr(first, second)[0]
    assert motif_correlation(counts, reference) == pytest.approx(expected)


def test_few_motifs_or_equal_counts_have_no_correlation() -> None:
    counts = torch.tensor([[1, 0, 2]])
    assert math.isnan(motif_correlation(counts, torch.tensor([[5, 5, 0]])))
    assert math.isnan(motif_correlation(counts, torch.tensor([[5, 0, 5]])))
    with pytest.raises(ValueError, match="of 3 and of 2 motifs"):
        motif_correlation(counts, torch.tensor([[1, 1]]))


def test_diversity_is_one_minus_the_mean_identity_of_pairs() -> None:
    strings = random_dna(6).strings()
    identities = [
        sum(a == b for a, b in zip(first, second, strict=True)) / 12
        for first, second in combinations(strings, 2)
    ]
    assert diversity(dna(*strings)) == pytest.approx(1 - sum(identities) / len(identities))
    assert diversity(dna("ACGT", "ACGT")) == 0
    assert diversity(dna("AAAA", "CCCC", "GGGG")) == 1
    assert math.isnan(diversity(dna("ACGT")))


def test_gc_content_is_a_share_per_sequence() -> None:
    assert gc_content(dna("GGCC", "GATA", "AAAA")).tolist() == [1, 0.25, 0]
    with pytest.raises(ValueError, match="no G or no C in AT"):
        gc_content(Tokens(torch.zeros(1, 2, dtype=torch.int64), "AT"))


def test_novelty_is_the_distance_to_the_nearest() -> None:
    reference = dna("AAAA", "CCCC", "CCGG")
    assert novelty(dna("AAAA", "AACC", "CCCG", "TTTT"), reference).tolist() == [0, 0.5, 0.25, 1]


def test_the_nearest_is_found_among_many() -> None:
    samples, reference = random_dna(5), random_dna(600, seed=1)
    expected = (samples.ids[:, None] != reference.ids).float().mean(2).amin(1)
    torch.testing.assert_close(novelty(samples, reference), expected)


def test_relaxed_tokens_count_by_their_largest_weights() -> None:
    samples, reference = random_dna(4), random_dna(5, seed=1)
    weights = 0.1 + torch.nn.functional.one_hot(samples.ids, 4).float()
    relaxed = Tokens(weights, DNA)
    assert diversity(relaxed) == diversity(samples)
    assert kmer_correlation(relaxed, reference) == kmer_correlation(samples, reference)
    assert torch.equal(novelty(relaxed, reference), novelty(samples, reference))
    assert torch.equal(gc_content(relaxed), gc_content(samples))


def test_sets_that_cannot_be_compared_are_refused() -> None:
    protein = Tokens(torch.zeros(1, 12, dtype=torch.int64), PROTEIN)
    for compare in (kmer_correlation, novelty):
        with pytest.raises(ValueError, match="ACGT"):
            compare(random_dna(2), protein)
    with pytest.raises(ValueError, match="12 and of 11 letters"):
        novelty(random_dna(2), random_dna(2, 11))
    with pytest.raises(ValueError, match="2 letters have no words of 3"):
        kmer_correlation(random_dna(2, 2), random_dna(2))
