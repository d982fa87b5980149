"""Dilated convolutions over a sequence: the denoiser of DNA of the DRAKES and SVDD papers.

Source: Stark et al. (2024), ICML, arXiv:2402.05841 (the network); Wang et al. (2024),
arXiv:2410.13643 (its use for masked diffusion). States are held as (B, hidden, 1, L) with channels
last in memory: convolutions of images are several times faster in that order than those of
sequences, and the normalisation over channels needs no copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

from diffreward.sequences.denoisers.interface import DenoiserOutput, row_times, weights_of

TIME_SCALE = 1000
"""Times in [0, 1] as sinusoidal embeddings expect them."""


class ConvDenoiser(ModelMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]
    """Residual blocks of a dilated convolution each; takes sequences of any length.

    With the defaults 2.98 M parameters, or 3.33 M with time conditioning: the size of the papers,
    whose networks have the weights of a time that they set to zero.

    Args:
        vocab_size: V, clean symbols; the mask is symbol V.
        hidden: channels.
        stacks: blocks of each dilation.
        dilations: kinds of blocks, in this order.
        kernel: width of the convolutions, odd.
        dropout: before each block.
        time_conditioning: whether the time enters each block.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        vocab_size: int = 4,
        hidden: int = 128,
        stacks: int = 4,
        dilations: Sequence[int] = (1, 1, 4, 16, 64),
        kernel: int = 9,
        dropout: float = 0.0,
        time_conditioning: bool = False,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel is odd, so that a block keeps the length, got {kernel}")
        width = hidden if time_conditioning else None
        self.conv_in = _convolution(vocab_size + 1, hidden, kernel)
        self.blocks = nn.ModuleList(
            [
                ConvBlock(hidden, kernel, dilation, dropout, width)
                for dilation in dilations
                for _ in range(stacks)
            ]
        )
        self.conv_mid = _convolution(hidden, hidden, 1)
        self.conv_out = _convolution(hidden, vocab_size, 1)
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
            ValueError: if the sample has another shape, or a time is missing.
        """
        x = weights_of(sample, self.config.vocab_size, self.dtype)
        time = None if self.time is None else self.time(row_times(timestep, sample))
        x = self.conv_in(x.transpose(1, 2)[:, :, None]).relu()
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, time)
            else:
                x = block(x, time)
        logits = self.conv_out(self.conv_mid(x).relu())[:, :, 0].transpose(1, 2).float()
        return DenoiserOutput(logits=logits) if return_dict else (logits,)


class TimeEmbedding(nn.Module):
    """Times (B,) in [0, 1] as vectors, (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.waves = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.linear = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        """The vectors, in the dtype of the weights."""
        waves = self.waves(TIME_SCALE * time)
        return F.silu(self.linear(waves.to(self.linear.weight.dtype)))


class ConvBlock(nn.Module):
    """x + relu(conv(norm(x + time))), on (B, C, 1, L).

    Args:
        channels: C.
        kernel: width.
        dilation: of the convolution.
        dropout: of what enters.
        time_width: size of the embedding of time; None if none enters.
    """

    def __init__(
        self, channels: int, kernel: int, dilation: int, dropout: float, time_width: int | None
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = _convolution(channels, channels, kernel, dilation)
        self.dropout = nn.Dropout(dropout)
        self.time_proj = None if time_width is None else nn.Linear(time_width, channels)

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        """The next x, given the embedding of time, (B, time_width) or None."""
        h = self.dropout(x)
        if self.time_proj is not None:
            h = h + self.time_proj(time)[:, :, None, None]
        normal = self.norm(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        moved: Tensor = self.conv(normal).relu()
        return x + moved


class LengthConv(nn.Conv2d):
    """A convolution along the last dimension whose dilation is the one that keeps the length.

    PEFT makes adapters by calling the class of a layer with everything but its dilation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        bias: bool = True,
        groups: int = 1,
    ) -> None:
        dilation = 2 * padding[1] // (kernel_size[1] - 1) if kernel_size[1] > 1 else 1
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            (1, dilation),
            groups=groups,
            bias=bias,
        )


def _convolution(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> nn.Conv2d:
    return LengthConv(inputs, outputs, (1, kernel), padding=(0, dilation * (kernel - 1) // 2))
