"""Motifs: how well a sequence can be bound by given factors, by their position weight matrices.

Source: log-odds against a uniform background, log2 of (p + eps) / (1 + V eps) / (1 / V) with
eps = 1e-4, as in FIMO (Grant et al. (2011), Bioinformatics 27:1017) and gReLU. Hits: a p-value from
the exact law of the score under the background, found by convolution of scores in bins of 0.1 bits,
0.001 by default, as in gReLU's scan and so in the JASPAR correlation of Wang et al. (2025), DRAKES,
arXiv:2410.13643.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffreward.alphabets import DNA, RNA, one_hot
from diffreward.reward import Reward
from diffreward.samples import Samples

_EPS = 1e-4
_BIN = 0.1
"""In bits."""
_ROWS = 16
"""Sequences scanned at once: a thousand motifs on 200 letters take 2 MB per sequence."""


class Motifs(Reward):
    """How well the best or all places of a sequence fit some motifs, in bits, their mean.

    Differentiable: relaxed tokens score their expected log-odds at each place.

    Args:
        file: in the MEME format, such as JASPAR and HOCOMOCO offer; of DNA or RNA.
        names: of the motifs, as they stand after MOTIF in the file, by identifier or by the second
            name; all motifs of the file if empty.
        score: "max", the log-odds of the best place; or "occupancy", temperature * log2 of the sum
            of 2^(log-odds / temperature) over all places, which also counts further, weaker sites.
        temperature: of "occupancy", in bits. At 1 a place counts by its likelihood ratio; near 0
            the best place alone counts.
        both_strands: whether motifs are also looked for on the reverse complement; not for RNA.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file has no motif of a name or none at all, or an argument is unknown.
    """

    def __init__(
        self,
        file: str,
        names: Sequence[str] = (),
        score: Literal["max", "occupancy"] = "max",
        temperature: float = 1.0,
        both_strands: bool = True,
    ) -> None:
        if score not in ("max", "occupancy") or not temperature > 0:
            raise ValueError(
                f"score is max or occupancy and temperature above 0, got {score!r}, {temperature}"
            )
        self.file, self.score, self.temperature = file, score, temperature
        self.alphabet, motifs = read_meme(Path(file).expanduser())
        self.names = tuple(names) or tuple(motifs)
        matrices = [_find(motifs, name, file) for name in self.names]
        self.widths = torch.tensor([len(matrix) for matrix in matrices])
        self._kernels = torch.stack([_log_odds(p, int(self.widths.max())) for p in matrices])
        if not both_strands:
            self._kernels = self._kernels[:, :1]

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return self.per_motif(samples).mean(1)

    def per_motif(self, samples: Samples) -> Tensor:
        """The score of each motif, (B, M), in bits.

        Raises:
            ValueError: if the sequences are shorter than a motif.
        """
        letters = one_hot(samples, self.alphabet)
        if letters.shape[1] < int(self.widths.max()):
            name = self.names[int(self.widths.argmax())]
            raise ValueError(
                f"{name} has {int(self.widths.max())} places, the sequences {letters.shape[1]}"
            )
        scores = self._scan(letters, self._kernels).flatten(2)
        if self.score == "max":
            return scores.amax(2)
        scale = self.temperature / math.log(2)
        return (scores / scale).logsumexp(2) * scale

    def counts(self, samples: Samples, p_value: float = 1e-3) -> Tensor:
        """How many places of each sequence each motif hits, on all strands, (B, M) int64.

        A place is hit if a random one, of uniform letters, scores as high with at most this
        probability. Motifs longer than the sequences hit nowhere.
        """
        binned = (self._kernels / _BIN).round()
        limits = torch.tensor(
            [
                _limit(kernel[0, :, :width].T, p_value)
                for kernel, width in zip(binned, self.widths.tolist(), strict=True)
            ]
        )
        letters = one_hot(samples, self.alphabet).detach()
        limits = limits.to(letters.device)[:, None, None]
        counts = [
            (self._scan(rows, binned) >= limits).flatten(2).sum(2) for rows in letters.split(_ROWS)
        ]
        return torch.cat(counts)

    def _scan(self, letters: Tensor, kernels: Tensor) -> Tensor:
        """Scores by place and strand, (B, L, V) -> (B, M, S, L); -inf where a motif sticks out."""
        padded = F.pad(letters, (0, 0, 0, kernels.shape[3] - 1))
        windows = padded.unfold(1, kernels.shape[3], 1).flatten(2)
        # Convolutions on GPUs round their factors to 10 bits, unlike products of matrices.
        scores = windows @ kernels.flatten(2).flatten(0, 1).T.to(letters.device)
        ends = torch.arange(letters.shape[1]) + self.widths[:, None, None]
        outside = (ends > letters.shape[1]).to(letters.device)
        by_motif: Tensor = scores.unflatten(2, kernels.shape[:2]).movedim(1, 3)
        return by_motif.masked_fill(outside, -torch.inf)


def _log_odds(probabilities: Tensor, width: int) -> Tensor:
    """On both strands, from the left: (w, V) -> (2, V, width) float32, zero behind the motif."""
    size = probabilities.shape[1]
    forward = ((probabilities + _EPS) / (1 + size * _EPS) * size).log2()
    # The letters of both alphabets stand in the order of their complements, backwards.
    strands = torch.stack([forward, forward.flip(0, 1)]).transpose(1, 2)
    return F.pad(strands, (0, width - len(probabilities))).float()


def read_meme(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The alphabet of a MEME file and its motifs, each (w, V) float64 with rows that sum to 1.

    Each under what stands after MOTIF: an identifier, and a second name if it has one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not of DNA or RNA, has no motif, or a matrix is no law in each row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no MEME file at {path.absolute()}")
    text = path.read_text(encoding="utf-8")
    declared = re.search(r"^ALPHABET=\s*(\S+)", text, re.MULTILINE)
    alphabet = declared[1] if declared else DNA
    if alphabet not in (DNA, RNA):
        raise ValueError(f"{path} has motifs of {alphabet}, expected {DNA} or {RNA}")
    motifs = {}
    for entry in re.split(r"^MOTIF\s+", text, flags=re.MULTILINE)[1:]:
        names = entry.partition("\n")[0].strip()
        rows = re.findall(r"^\s*((?:[\d.eE+-]+\s+){3}[\d.eE+-]+)\s*$", entry, re.MULTILINE)
        matrix = torch.tensor([[float(p) for p in row.split()] for row in rows]).double()
        if not rows or bool((matrix.sum(1) - 1).abs().max() > 1e-2) or bool((matrix < 0).any()):
            raise ValueError(f"motif {names} of {path} has no matrix of letter probabilities")
        motifs[names] = matrix / matrix.sum(1, keepdim=True)
    if not motifs:
        raise ValueError(f"{path} has no motif")
    return alphabet, motifs


def _find(motifs: Mapping[str, Tensor], name: str, file: str) -> Tensor:
    """The motif of one of its names, or of both as they stand in the file."""
    fitting = [names for names in motifs if name == names or name in names.split()]
    if len(fitting) != 1:
        near = fitting or [names for names in motifs if name.lower() in names.lower()]
        raise ValueError(f"{file} has {len(fitting)} motifs called {name!r}; near: {near[:10]}")
    return motifs[fitting[0]]


def _limit(levels: Tensor, p_value: float) -> float:
    """The smallest sum of one entry per row, (w, V), that chance reaches with at most p; or inf."""
    least = levels.amin(1)
    law = torch.ones(1, dtype=torch.float64)
    for row in (levels - least[:, None]).long():
        longer = law.new_zeros(len(law) + int(row.max()))
        for level in row.tolist():
            longer[level : level + len(law)] += law / len(row)
        law = longer
    tail = law.flip(0).cumsum(0).flip(0)
    reached = (tail <= p_value).nonzero()
    return float(reached[0]) + float(least.sum()) if len(reached) else math.inf
