"""GC content: how near the share of G and C in a nucleic acid is to a wanted one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from diffreward.alphabets import DNA, one_hot
from diffreward.reward import Reward
from diffreward.samples import Samples


@dataclass(frozen=True)
class GCContent(Reward):
    """Minus the distance of the share of G and C from the target, in [-1, 0]; differentiable.

    Many other measures of DNA go with GC content. As a held-out measure it shows whether a reward
    was raised by composition alone.

    Args:
        target: a share, 0 to 1.
        alphabet: of the samples: `DNA`, or `RNA`.

    Raises:
        ValueError: if the target is no share, or the alphabet has no G or no C.
    """

    target: float
    alphabet: str = DNA

    def __post_init__(self) -> None:
        if not 0 <= self.target <= 1:
            raise ValueError(f"the target is a share of letters, 0 to 1, got {self.target}")
        if not set("GC") <= set(self.alphabet):
            raise ValueError(f"there is no G or no C in {self.alphabet}")

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        letters = one_hot(samples, self.alphabet)
        columns = [self.alphabet.index(letter) for letter in "GC"]
        share = letters[..., columns].sum(-1).mean(1)
        return -(share - self.target).abs()
