from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffreward.alphabets import DNA, PROTEIN, ids_of
from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.kmers import KmerSimilarity, kmer_counts
from diffreward.samples import Texts, Tokens

FASTA = ">one\nACGTA\nCGGGA\n>two, with N\nacgtNNacca\n"


@pytest.fixture
def reference(tmp_path: Path) -> str:
    (tmp_path / "real.fasta").write_text(FASTA)
    return str(tmp_path / "real.fasta")


def dna(*strings: str) -> Tokens:
    return Tokens(torch.tensor(ids_of(strings, DNA)), DNA)


def words(string: str, k: int) -> Counter[str]:
    return Counter(string[i : i + k] for i in range(len(string) - k + 1))


def vector(counts: Counter[str], k: int, alphabet: str = DNA) -> list[int]:
    return [counts["".join(word)] for word in product(alphabet, repeat=k)]


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_counts_are_those_of_a_counter(k: int) -> None:
    ids = torch.randint(4, (3, 40), generator=stream(k))
    counts = kmer_counts(F.one_hot(ids, 4).float(), k)
    strings = Tokens(ids, DNA).strings()
    assert counts.tolist() == [vector(words(string, k), k) for string in strings]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_relaxed_counts_are_the_mean_over_sequences(k: int) -> None:
    weights = torch.rand(1, 4, 3, generator=stream(k)).softmax(-1)
    expected = torch.zeros(3**k)
    for ids in product(range(3), repeat=4):
        probability = torch.stack([weights[0, i, a] for i, a in enumerate(ids)]).prod()
        expected += probability * kmer_counts(F.one_hot(torch.tensor([ids]), 3).float(), k)[0]
    torch.testing.assert_close(kmer_counts(weights, k)[0], expected)


def test_the_score_is_the_correlation_with_the_words_of_the_file(reference: str) -> None:
    parts = ("ACGTACGGGA", "ACGT", "ACCA")  # N parts the second sequence
    known = vector(sum((words(part, 3) for part in parts), Counter()), 3)
    strings = ("ACGTACGTTT", "GGGACGGGAC", "TTTTTTTTTT")
    expected = [np.corrcoef(known, vector(words(string, 3), 3))[0, 1] for string in strings]
    scores = KmerSimilarity(reference)(dna(*strings), [""] * 3)
    assert scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_sequence_of_the_file_correlates_perfectly(tmp_path: Path) -> None:
    (tmp_path / "one.fasta").write_text(">x\nMKVLAAGIVG\n")
    reward = KmerSimilarity(str(tmp_path / "one.fasta"), k=2, alphabet=PROTEIN)
    samples = Tokens(torch.tensor(ids_of(["MKVLAAGIVG"], PROTEIN)), PROTEIN)
    assert reward(samples, [""]).tolist() == pytest.approx([1.0], abs=1e-6)


def test_equal_frequencies_are_no_score(reference: str) -> None:
    scores = KmerSimilarity(reference, k=1)(dna("ACGTACGT", "AACGTTTT"), ["", ""])
    assert scores.isnan().tolist() == [True, False]


def test_the_gradient_is_the_slope(reference: str) -> None:
    reward = KmerSimilarity(reference, k=2)
    weights = torch.rand(1, 6, 4, generator=stream(0), dtype=torch.float64).softmax(-1)

    def at(x: torch.Tensor) -> torch.Tensor:
        return reward(Tokens(x.float(), DNA), [""])

    x = weights.float().requires_grad_()
    (gradient,) = torch.autograd.grad(at(x).sum(), x)
    step = torch.randn(gradient.shape, generator=stream(1)) * 2e-3
    slope = at(weights + step) - at(weights - step)
    torch.testing.assert_close(slope[0], 2 * (gradient * step).sum(), rtol=1e-2, atol=1e-5)


def test_the_contract_is_kept(reference: str) -> None:
    ids = torch.randint(4, (4, 30), generator=stream(0))
    check_reward(KmerSimilarity(reference), Tokens(ids, DNA), [""] * 4)


def test_what_cannot_be_compared_is_refused(reference: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.fasta"):
        KmerSimilarity(str(tmp_path / "nowhere.fasta"))
    with pytest.raises(ValueError, match="no word of 6 letters"):
        (tmp_path / "short.fasta").write_text(">a\nACG\n>b\nNNNNNNNN\n")
        KmerSimilarity(str(tmp_path / "short.fasta"), k=6)
    with pytest.raises(ValueError, match="k = 0"):
        KmerSimilarity(reference, k=0)
    with pytest.raises(ValueError, match="2 letters have no words of 3"):
        KmerSimilarity(reference)(dna("AC"), [""])
    with pytest.raises(TypeError, match="scores Tokens"):
        KmerSimilarity(reference)(Texts(("ACGT",)), [""])
