"""Coloured digits: the words, the split, the loading of MNIST and the rendering.

Every script of this folder imports from here, so that the pictures, the captions and the
held-out combinations are the same for the pipeline, the reward model and the judge.
"""

import gzip
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

SIZE = 32
"""Height and width of a rendered image."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.87, 0.08, 0.10),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (0.98, 0.92, 0.15),
    "green": (0.08, 0.62, 0.18),
    "blue": (0.10, 0.20, 0.88),
    "purple": (0.55, 0.10, 0.65),
    "white": (0.95, 0.95, 0.95),
    "black": (0.05, 0.05, 0.05),
}

COLOUR_NAMES = tuple(COLOURS)
COLOUR_JITTER = 0.03
"""Standard deviation of the per-image change of every colour channel."""

SHIFT = 2
"""Largest displacement of a digit, in pixels, along each axis."""

Combination = tuple[int, int, int]
"""Indices of the digit, the ink colour and the ground colour."""


def caption(combination: Combination) -> str:
    """Return the prompt of a combination, such as "a red seven on a blue background"."""
    digit, ink, ground = combination
    words = [_with_article(f"{COLOUR_NAMES[ink]} {DIGITS[digit]}")]
    words.append(_with_article(f"{COLOUR_NAMES[ground]} background"))
    return " on ".join(words)


def _with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def combinations() -> list[Combination]:
    """Return all 560 combinations in which the ink differs from the ground."""
    colours = range(len(COLOUR_NAMES))
    return [
        (digit, ink, ground)
        for digit in range(len(DIGITS))
        for ink in colours
        for ground in colours
        if ink != ground
    ]


def held_out_combinations() -> list[Combination]:
    """Return the fifth of the combinations (112) that no generative or reward model trains on.

    For every pair of ink and ground two of the ten digits are held out, drawn from a shuffled
    deck, so that every digit, every ink and every ground still occurs in training, and every
    digit is held out about equally often.
    """
    deck: list[int] = []
    shuffler = random.Random(0)
    held: list[Combination] = []
    colours = range(len(COLOUR_NAMES))
    for ink, ground in [(i, g) for i in colours for g in colours if i != g]:
        if not deck:
            deck = list(range(len(DIGITS)))
            shuffler.shuffle(deck)
        held += [(deck.pop(), ink, ground) for _ in range(2)]
    return sorted(held)


def seen_combinations() -> list[Combination]:
    """Return the 448 combinations used in training."""
    held = set(held_out_combinations())
    return [combination for combination in combinations() if combination not in held]


@dataclass(frozen=True)
class Digits:
    """Handwritten digits.

    Attributes:
        masks: Ink coverage in [0, 1], of shape (N, 28, 28).
        labels: Digit shown by each mask, of shape (N,).
    """

    masks: Tensor
    labels: Tensor

    def subset(self, rows: Tensor) -> "Digits":
        """Return the digits of the given rows, of shape (M,)."""
        return Digits(self.masks[rows], self.labels[rows])


def load_digits(
    folder: Path, part: Literal["pipeline", "classifier-train", "classifier-test"]
) -> Digits:
    """Load one part of the 10,000 images of the MNIST test set.

    The parts are disjoint: 5,000 images train the VAE, the UNet and the CLIP model, 4,000
    others train the classifier, and the last 1,000 are shown to no model.

    Args:
        folder: Folder with the two ``t10k-*-ubyte.gz`` files.
        part: Which part to return.
    """
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as stream:
        pixels = torch.frombuffer(bytearray(stream.read()[16:]), dtype=torch.uint8)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as stream:
        labels = torch.frombuffer(bytearray(stream.read()[8:]), dtype=torch.uint8)
    digits = Digits(pixels.reshape(-1, 28, 28).float() / 255, labels.long())
    order = torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(0))
    rows = {
        "pipeline": order[:5000],
        "classifier-train": order[5000:9000],
        "classifier-test": order[9000:],
    }
    return digits.subset(rows[part])


@dataclass(frozen=True)
class Rendered:
    """A batch of coloured digits.

    Attributes:
        pixels: RGB images in [0, 1], of shape (B, 3, 32, 32).
        targets: Digit, ink and ground indices, of shape (B, 3).
    """

    pixels: Tensor
    targets: Tensor

    def captions(self) -> list[str]:
        """Return the B prompts that describe the images."""
        return [caption((row[0], row[1], row[2])) for row in self.targets.tolist()]


class Renderer:
    """Paints handwritten digits in the colours of a set of combinations.

    Args:
        digits: The handwritten digits.
        allowed: The combinations that may occur.
    """

    def __init__(self, digits: Digits, allowed: list[Combination]) -> None:
        pad = (SIZE - 28) // 2 + SHIFT
        self._masks = torch.nn.functional.pad(digits.masks, (pad, pad, pad, pad))
        self._rows = [(digits.labels == digit).nonzero()[:, 0] for digit in range(len(DIGITS))]
        self._allowed = torch.tensor(allowed)
        self._palette = torch.tensor(list(COLOURS.values()))

    def batch(self, count: int, generator: torch.Generator) -> Rendered:
        """Render ``count`` images of uniformly drawn combinations."""
        drawn = torch.randint(len(self._allowed), (count,), generator=generator)
        return self.render(self._allowed[drawn], generator)

    def render(self, targets: Tensor, generator: torch.Generator) -> Rendered:
        """Render one image for each row of ``targets``, of shape (B, 3)."""
        coverage = self._coverage(targets[:, 0], generator)[:, None]
        ink = self._tint(targets[:, 1], generator)
        ground = self._tint(targets[:, 2], generator)
        return Rendered(ground * (1 - coverage) + ink * coverage, targets)

    def _coverage(self, digits: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a displaced mask of each digit, of shape (B, 32, 32)."""
        picks = torch.rand(len(digits), generator=generator)
        rows = [
            self._rows[digit][int(pick * len(self._rows[digit]))]
            for digit, pick in zip(digits.tolist(), picks.tolist(), strict=True)
        ]
        corner = torch.randint(2 * SHIFT + 1, (2, len(digits), 1), generator=generator)
        window = corner + torch.arange(SIZE)
        return self._masks[
            torch.stack(rows)[:, None, None], window[0, :, :, None], window[1, :, None, :]
        ]

    def _tint(self, colours: Tensor, generator: torch.Generator) -> Tensor:
        """Return slightly varied colours, of shape (B, 3, 1, 1)."""
        noise = torch.randn(len(colours), 3, generator=generator) * COLOUR_JITTER
        return (self._palette[colours] + noise).clamp(0, 1)[:, :, None, None]
