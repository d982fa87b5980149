"""What can be read off the letters of a text: a pattern, or its length."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffreward.reward import Reward
from diffreward.samples import Samples, texts

Unit = Literal["characters", "words"]

_COUNT: dict[Unit, Callable[[str], int]] = {
    "characters": len,
    "words": lambda text: len(text.split()),
}


@dataclass(frozen=True)
class Pattern(Reward):
    r"""Whether a regular expression occurs in a text, 1 or 0; or how often. Not differentiable.

    Args:
        regex: of Python's `re`, which also has the flags: ``(?i)color`` in any case,
            ``(?s)\A...\Z`` for the whole text.
        count: the number of places that do not overlap, instead of 1.

    Raises:
        ValueError: if it is no regular expression.
    """

    regex: str
    count: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.regex)
        except re.error as error:
            raise ValueError(f"{self.regex!r} is no regular expression: {error}") from error

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        found = [sum(1 for _ in re.finditer(self.regex, text)) for text in texts(samples)]
        counts = torch.tensor(found, dtype=torch.float32)
        return counts if self.count else counts.clamp(max=1)


@dataclass(frozen=True)
class Length(Reward):
    """Minus how far the length of a text is from a range, in its unit. Not differentiable.

    Args:
        least: no text within the range is too short; 0 for no bound.
        most: none is too long; infinity if not given.
        unit: characters, or words, which blanks divide.

    Raises:
        ValueError: if the range is empty.
    """

    least: int = 0
    most: int | None = None
    unit: Unit = "characters"

    def __post_init__(self) -> None:
        if self.most is not None and self.most < self.least:
            raise ValueError(f"no length is at least {self.least} and at most {self.most}")

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        lengths = torch.tensor(
            [_COUNT[self.unit](text) for text in texts(samples)], dtype=torch.float32
        )
        above = 0.0 if self.most is None else (lengths - self.most).clamp(min=0)
        return -(self.least - lengths).clamp(min=0) - above
