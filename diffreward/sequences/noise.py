"""How the share of masked positions grows with time.

Sources: Sahoo et al. (2024), arXiv:2406.07524 (log-linear); Chang et al. (2022), arXiv:2202.04200
(cosine). Time 1 is all masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """How the share of masked positions grows with time in [0, 1].

    Args:
        share: from 0 to 1, (...,) -> (...,).
        weight: the derivative of its logarithm.
    """

    share: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor], Tensor]


NOISES: Mapping[str, Noise] = {
    "log_linear": Noise(lambda t: t, lambda t: 1 / t),
    "cosine": Noise(
        lambda t: torch.sin(math.pi / 2 * t),
        lambda t: math.pi / 2 / torch.tan(math.pi / 2 * t),
    ),
}
