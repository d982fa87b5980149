"""SUBS: from a network's logits to the law of the clean sequence.

Source: Sahoo et al. (2024), NeurIPS, arXiv:2406.07524, section 3.2.3: a clean symbol is never the
mask (zero masking probabilities), and what is not masked stays as it is (carry-over unmasking).
"""

from __future__ import annotations

import torch
from torch import Tensor


def subs_log_probs(logits: Tensor, sample: Tensor) -> Tensor:
    """Log p(clean symbol | sample) at each position, (B, L, V), in nats.

    Args:
        logits: of the V clean symbols, (B, L, V), at any position.
        sample: ids, (B, L) int64, V being the mask.
    """
    symbols = torch.arange(logits.shape[-1], device=sample.device)
    elsewhere = (sample[..., None] != symbols) & (sample != len(symbols))[..., None]
    shown = (sample != len(symbols))[..., None]
    return torch.where(shown, 0.0, logits.log_softmax(-1)).masked_fill(elsewhere, -torch.inf)
