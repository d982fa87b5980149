"""What goes into a denoiser of sequences and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass
class DenoiserOutput(BaseOutput):  # type: ignore[misc]
    """What a denoiser says of the clean symbols.

    Args:
        logits: (B, L, V), float32, unnormalised log-probabilities of the V clean symbols at each
            position: the raw ones, so also at positions that are not masked.
    """

    logits: Tensor


def weights_of(sample: Tensor, symbols: int, dtype: torch.dtype) -> Tensor:
    """States as weights over V clean symbols and the mask, (B, L, V + 1); differentiable in them.

    Args:
        sample: ids, (B, L) int64 with V for the mask, or already weights, (B, L, V + 1).
        symbols: V.
        dtype: of the result.

    Raises:
        ValueError: if the shape or the dtype is another.
    """
    if sample.ndim == 2 and sample.dtype == torch.int64:
        return F.one_hot(sample, symbols + 1).to(dtype)
    if sample.ndim == 3 and sample.shape[2] == symbols + 1 and sample.is_floating_point():
        return sample.to(dtype)
    raise ValueError(
        f"states are ids (B, L) of int64 or weights (B, L, {symbols + 1}), got "
        f"{tuple(sample.shape)} of {sample.dtype}"
    )


def row_times(timestep: Tensor | float | None, sample: Tensor) -> Tensor:
    """The time of each row, (B,) float32 in [0, 1], from one for all rows or one for each.

    Raises:
        ValueError: if there is none.
    """
    if timestep is None:
        raise ValueError("this denoiser is conditioned on time: give timestep, 1 = all masked")
    return torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(len(sample))
