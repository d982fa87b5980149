"""K-mer similarity: does a sequence use short words as often as a set of real sequences does?

Source: the 3-mer correlation of Wang et al. (2025), DRAKES, ICLR, arXiv:2410.13643, section 6.1,
which compares the words of all samples together, and of which this is the form for one sample. A
sequence of some hundred letters holds only a few of the words of a set, so that single sequences of
the set itself score far below 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffreward.alphabets import DNA, one_hot
from diffreward.enumeration import joint, number
from diffreward.reward import Reward
from diffreward.samples import Samples
from diffreward.sequences.records import read_records


class KmerSimilarity(Reward):
    """Pearson correlation of a sample's k-mer frequencies with those of a file, in [-1, 1].

    Differentiable: relaxed tokens count a word by the product of its letters' weights. A sample in
    which all words are equally frequent has no correlation, and no score. Takes memory for V^k
    numbers per sample.

    Args:
        reference: a FASTA or CSV file, or a `datasets` table, see
            `diffreward.sequences.records.read_records`. As for other counters of k-mers, words with
            symbols outside the alphabet, such as N, do not count.
        k: letters of a word.
        alphabet: of the samples and the file.

    Raises:
        FileNotFoundError, ImportError: as `read_records`.
        ValueError: if k is below 1, or the file has no word of k letters, or cannot be read.
    """

    def __init__(self, reference: str, k: int = 3, alphabet: str = DNA) -> None:
        if k < 1:
            raise ValueError(f"words have at least one letter, got k = {k}")
        self.reference, self.k, self.alphabet = reference, k, alphabet
        counts = torch.zeros(len(alphabet) ** k, dtype=torch.float64)
        for sequence in read_records(reference):
            counts += _words(sequence, k, alphabet)
        if not counts.any():
            raise ValueError(f"{reference} has no word of {k} letters of {alphabet}")
        self._reference = _standardised(counts).float()

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B samples and their B prompts to scores, (B,) float32.

        Raises:
            ValueError: if the samples are shorter than k.
        """
        letters = one_hot(samples, self.alphabet)
        return _standardised(kmer_counts(letters, self.k)) @ self._reference.to(letters.device)


def kmer_counts(letters: Tensor, k: int) -> Tensor:
    """How often each k-mer occurs, (B, L, V) -> (B, V^k), in the order of `enumeration.number`.

    Relaxed letters give expected counts, as if positions were independent.

    Raises:
        ValueError: if the sequences are shorter than k.
    """
    if letters.shape[1] < k:
        raise ValueError(f"sequences of {letters.shape[1]} letters have no words of {k}")
    words = letters.unfold(1, k, 1).transpose(2, 3).flatten(0, 1)
    # All V^k numbers of each place would be too many: words are joined from halves, in one product.
    halves = (_laws(words[:, : k // 2]), joint(words[:, k // 2 :]))
    first, second = (half.unflatten(0, (len(letters), -1)) for half in halves)
    counts: Tensor = first.transpose(1, 2) @ second
    return counts.flatten(1)


def _laws(words: Tensor) -> Tensor:
    """`joint`, also of no letters at all, where it is 1."""
    return joint(words) if words.shape[1] else words.new_ones(len(words), 1)


def _standardised(counts: Tensor) -> Tensor:
    """Rows of mean 0 and length 1, so that products are correlations; NaN where all are equal."""
    centred = counts - counts.mean(-1, keepdim=True)
    directions: Tensor = centred / centred.norm(dim=-1, keepdim=True)
    return directions


def _words(sequence: str, k: int, alphabet: str) -> Tensor:
    """The counts of one string, (V^k,) float64."""
    codes = torch.full((256,), -1)
    codes[list(alphabet.encode())] = torch.arange(len(alphabet))
    ids = codes[list(sequence.upper().encode("ascii", "replace"))]
    if len(ids) < k:
        return torch.zeros(len(alphabet) ** k, dtype=torch.float64)
    windows = ids.unfold(0, k, 1)
    found = number(windows[(windows >= 0).all(1)], len(alphabet))
    return torch.bincount(found, minlength=len(alphabet) ** k).double()
