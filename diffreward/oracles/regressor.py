"""A small convolutional network that predicts measured properties of a sequence.

Source: the plan is that of the sequence-to-activity networks of massively parallel reporter assays
(LegNet: Penzar et al., 2023, Bioinformatics 39, btad457; MPRA-DragoNN: Movva et al., 2019, PLoS ONE
14, e0218073): filters as wide as a motif, residual convolutions between poolings, pooling over the
whole sequence. The sizes are our own, for some thousand measured sequences and one CPU core.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from diffreward.alphabets import DNA


class SequenceRegressor(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predicts T numbers of a sequence of L symbols of V.

    Args:
        alphabet: the V symbols, in the order of the columns of the input.
        length: L; at least 2 to the power of `blocks`.
        tasks: names of the T outputs.
        means: of the labels, one per task; an output is `mean + std * network`.
        stds: of the labels, one per task; with means 0 and stds 1 outputs are the network's own,
            such as the log-odds of a class.
        channels: of all convolutions.
        blocks: residual blocks, each of which halves the length.
        dropout: share of the pooled features set to zero in training.
        both_strands: whether the output is the mean over the sequence and its reverse complement.

    Raises:
        ValueError: if there is not one mean and one std above 0 per task, the length is too small,
            or both strands are asked of anything but DNA.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        alphabet: str,
        length: int,
        tasks: Sequence[str] = ("activity",),
        means: Sequence[float] = (0.0,),
        stds: Sequence[float] = (1.0,),
        channels: int = 64,
        blocks: int = 3,
        dropout: float = 0.3,
        both_strands: bool = False,
    ) -> None:
        super().__init__()
        if not len(tasks) == len(means) == len(stds) or not tasks or min(stds) <= 0:
            raise ValueError(
                f"got {len(tasks)} tasks, means {list(means)} and stds {list(stds)}; expected one "
                "mean and one std above 0 per task, and a task"
            )
        if length < 2**blocks:
            raise ValueError(f"{blocks} halvings need a length of {2**blocks}, got {length}")
        if both_strands and alphabet != DNA:
            raise ValueError(f"only {DNA} has a reverse complement, got {alphabet}")
        # As wide as most motifs of transcription factors.
        self.motifs = nn.Sequential(
            nn.Conv1d(len(alphabet), channels, 11, padding=5, bias=False),
            nn.BatchNorm1d(channels),
            nn.SiLU(),
        )
        self.stages = nn.Sequential(*(_Stage(channels) for _ in range(blocks)))
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(2 * channels, len(tasks))
        # Not among the weights: the config has them, in more digits.
        self.register_buffer("centre", torch.tensor(means, dtype=torch.float32), persistent=False)
        self.register_buffer("unit", torch.tensor(stds, dtype=torch.float32), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        """The predictions in the units of the labels, (B, T).

        Args:
            rows: (B, L, V) floating point, one-hot or relaxed.

        Raises:
            ValueError: if the shape is another.
        """
        expected = (self.config.length, len(self.config.alphabet))
        if rows.ndim != 3 or tuple(rows.shape[1:]) != expected:
            raise ValueError(f"expected rows (B, {expected[0]}, {expected[1]}), got {rows.shape}")
        outputs = self.one_strand(rows)
        if self.config.both_strands:
            outputs = (outputs + self.one_strand(reverse_complement(rows))) / 2
        predictions: Tensor = self.centre + self.unit * outputs
        return predictions

    def one_strand(self, rows: Tensor) -> Tensor:
        """The predictions in standard deviations from the mean, (B, T), from the rows as given."""
        x = self.stages(self.motifs(rows.movedim(2, 1)))
        features = torch.cat([x.mean(2), x.amax(2)], dim=1)
        outputs: Tensor = self.head(self.drop(features))
        return outputs


class _Stage(nn.Module):
    """Halves the length, then adds a convolution: the pooling makes its view twice as wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool1d(2)
        self.residual = nn.Sequential(
            nn.Conv1d(channels, channels, 5, padding=2, bias=False),
            nn.BatchNorm1d(channels),
            nn.SiLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(x)
        halved: Tensor = pooled + self.residual(pooled)
        return halved


def reverse_complement(rows: Tensor) -> Tensor:
    """The other strand of DNA, (B, L, 4): in the order ACGT, complements are mirror images."""
    return rows.flip(1, 2)
