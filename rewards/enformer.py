"""Enformer: what a sequence does in the genome, track by track.

Source: Avsec et al. (2021), Nature Methods 18, 1196; the port to PyTorch of
github.com/lucidrains/enformer-pytorch (MIT licence), weights EleutherAI/enformer-official-rough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffreward.alphabets import DNA, one_hot
from diffreward.reward import Reward
from diffreward.samples import Samples

BIN = 128
"""Base pairs per output of a track."""


class Enformer(Reward):
    """Predicted reads of some human tracks where the sequence lies, their mean, >= 0.

    Differentiable. Needs the package ``enformer-pytorch``, whose version 0.8.12 loads weights with
    transformers below 5 only, and about 1 GB for them. The sequence stands in the middle of unknown
    bases, rows of zeros.

    Args:
        tracks: numbers of human tracks, 0 to 5312 of the published model.
        source: a hub id or a folder. The port knows the published model by its id only: it computes
            the positions of a copy in a folder in another way, and predicts slightly other numbers.
        length: base pairs that the network reads, sequence included; a multiple of 128. The
            network was trained on 196,608, and shorter ones save memory.

    Raises:
        ImportError: if ``enformer-pytorch`` is missing.
        ValueError: if there is no track, or the length is no positive multiple of 128.
    """

    def __init__(
        self,
        tracks: Sequence[int],
        source: str = "EleutherAI/enformer-official-rough",
        length: int = 196_608,
    ) -> None:
        if not tracks or length < BIN or length % BIN:
            raise ValueError(
                f"expected a track and a positive multiple of {BIN} base pairs, got "
                f"{list(tracks)} and {length}"
            )
        self.tracks, self.length = list(tracks), length
        self._network = _load(source)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B sequences of DNA to scores, (B,) float32.

        Raises:
            TypeError: if the samples are no tokens.
            ValueError: if they are no DNA, or longer than what the network reads.
        """
        rows = one_hot(samples, DNA)
        spare = self.length - rows.shape[1]
        if spare < 0:
            raise ValueError(f"the network reads {self.length} bp, got {rows.shape[1]}")
        left = spare // 2
        padded = F.pad(rows, (0, 0, left, spare - left))
        outputs: Tensor = self._network.to(rows.device)(padded, head="human")
        first, last = left // BIN, (left + rows.shape[1] - 1) // BIN
        return outputs[:, first : last + 1, self.tracks].float().mean((1, 2))


def _load(source: str) -> Any:
    try:
        from enformer_pytorch import from_pretrained
    except ImportError:
        raise ImportError("pip install enformer-pytorch to score by Enformer") from None
    with torch.random.fork_rng(devices=[]):
        # Without a crop of the outputs, output i is about base pairs 128 i to 128 (i + 1).
        network = from_pretrained(source, target_length=-1)
    return network.eval().requires_grad_(False)
