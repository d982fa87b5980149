"""Rewards that need nothing but the pixels."""

from collections.abc import Sequence

from torch import Tensor

from diffreward.samples import Samples, images


def redness(samples: Samples, prompts: Sequence[str]) -> Tensor:
    """The mean of red minus that of blue."""
    pixels = images(samples)
    return (pixels[:, 0] - pixels[:, 2]).mean((1, 2))


def blueness(samples: Samples, prompts: Sequence[str]) -> Tensor:
    """The opposite: a held-out measure."""
    return -redness(samples, prompts)
