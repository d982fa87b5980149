"""A transformer that sees the whole sequence at every position, with learned positions.

Source: Vaswani et al. (2017), arXiv:1706.03762; normalisation before each part as in Xiong et al.
(2020), arXiv:2002.04745. Learned positions suit sequences that are aligned, such as the variants of
one protein.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import Tensor, nn

from diffreward.sequences.denoisers.convolution import TimeEmbedding
from diffreward.sequences.denoisers.interface import DenoiserOutput, row_times, weights_of


class TransformerDenoiser(ModelMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]
    """Blocks of attention and a two-layer perceptron.

    Args:
        vocab_size: V, clean symbols; the mask is symbol V.
        hidden: size of the vector of a position; a multiple of the heads.
        layers: blocks.
        heads: of the attention.
        max_length: the most positions that it takes.
        dropout: of what a block adds.
        time_conditioning: whether the time enters, added to every position.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        vocab_size: int = 20,
        hidden: int = 128,
        layers: int = 4,
        heads: int = 4,
        max_length: int = 256,
        dropout: float = 0.0,
        time_conditioning: bool = False,
    ) -> None:
        super().__init__()
        if hidden % heads:
            raise ValueError(f"hidden is a multiple of heads, got {hidden} and {heads}")
        self.embed_in = nn.Linear(vocab_size + 1, hidden)
        self.positions = nn.Parameter(0.02 * torch.randn(max_length, hidden))
        self.blocks = nn.ModuleList(
            [TransformerBlock(hidden, heads, dropout) for _ in range(layers)]
        )
        self.norm_out = nn.LayerNorm(hidden)
        self.proj_out = nn.Linear(hidden, vocab_size)
        self.time: nn.Module | None = TimeEmbedding(hidden) if time_conditioning else None
        self.gradient_checkpointing = False

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | None = None,
        return_dict: bool = True,
    ) -> DenoiserOutput | tuple[Tensor]:
        """Logits of the clean symbols.

        Args:
            sample: ids, (B, L) int64 with V for the mask, or weights, (B, L, V + 1) floating.
            timestep: in [0, 1], for all rows or (B,); not looked at without time conditioning.
            return_dict: whether an output or a tuple comes back.

        Raises:
            ValueError: if the sample has another shape or is too long, or a time is missing.
        """
        x = weights_of(sample, self.config.vocab_size, self.dtype)
        if x.shape[1] > len(self.positions):
            raise ValueError(f"got {x.shape[1]} positions, this network has {len(self.positions)}")
        x = self.embed_in(x) + self.positions[: x.shape[1]]
        if self.time is not None:
            x = x + self.time(row_times(timestep, sample))[:, None]
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x)
            else:
                x = block(x)
        logits = self.proj_out(self.norm_out(x)).float()
        return DenoiserOutput(logits=logits) if return_dict else (logits,)


class TransformerBlock(nn.Module):
    """Attention and perceptron, each normalised before and added, on (B, L, hidden)."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attn = SelfAttention(hidden, heads)
        self.ff = nn.Sequential(
            nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The next x."""
        x = x + self.dropout(self.attn(self.norm1(x)))
        added: Tensor = self.dropout(self.ff(self.norm2(x)))
        return x + added


class SelfAttention(nn.Module):
    """Of all positions to all; its parts have the names by which adapters are attached."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(hidden, hidden) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(hidden, hidden)])

    def forward(self, x: Tensor) -> Tensor:
        """What each position reads, (B, L, hidden)."""
        parts = [
            part(x).unflatten(2, (self.heads, -1)) for part in (self.to_q, self.to_k, self.to_v)
        ]
        read = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts))
        result: Tensor = self.to_out[0](read.transpose(1, 2).flatten(2))
        return result
