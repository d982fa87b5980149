"""Where training images with captions come from: coloured digits or CIFAR-10."""

import io
from pathlib import Path
from typing import Literal, Protocol

import torch
from digits import COLOUR_NAMES, DIGITS, Renderer, load_digits, seen_combinations
from torch import Tensor

SourceName = Literal["digits", "cifar"]

CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


class Source(Protocol):
    """Draws images together with their captions."""

    def vocabulary(self) -> tuple[str, ...]:
        """Return the words that captions are made of."""

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Return images in [0, 1], of shape (count, 3, 32, 32), and their captions."""


class DigitSource:
    """Coloured digits of the seen combinations.

    Args:
        folder: Folder of the MNIST test set.
    """

    def __init__(self, folder: Path) -> None:
        self._renderer = Renderer(load_digits(folder, "pipeline"), seen_combinations())

    def vocabulary(self) -> tuple[str, ...]:
        """Return the digits, the colours and the words between them."""
        return ("a", "an", "on", "background", *DIGITS, *COLOUR_NAMES)

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Render digits, see `Source.batch`."""
        rendered = self._renderer.batch(count, generator)
        return rendered.pixels, rendered.captions()


class CifarSource:
    """Photos of the CIFAR-10 training set, flipped at random.

    Args:
        folder: Folder with ``train.parquet``.
    """

    def __init__(self, folder: Path) -> None:
        # Imported here because only this source needs the two packages.
        import numpy
        import pyarrow.parquet
        from PIL import Image

        table = pyarrow.parquet.read_table(folder / "train.parquet")
        images, labels = table.columns[0].to_pylist(), table.columns[1].to_pylist()
        decoded = [numpy.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in images]
        self._pixels = torch.from_numpy(numpy.stack(decoded)).permute(0, 3, 1, 2)
        self._labels: list[int] = labels

    def vocabulary(self) -> tuple[str, ...]:
        """Return the class names and the words before them."""
        return ("a", "an", "photo", "of", *CIFAR_CLASSES)

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Draw photos, see `Source.batch`."""
        rows = torch.randint(len(self._pixels), (count,), generator=generator)
        flipped = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
        pixels = self._pixels[rows].float() / 255
        names = [CIFAR_CLASSES[self._labels[row]] for row in rows.tolist()]
        articles = ["an" if name[0] in "aeiou" else "a" for name in names]
        captions = [f"a photo of {a} {name}" for a, name in zip(articles, names, strict=True)]
        return torch.where(flipped, pixels.flip(3), pixels), captions


def open_source(name: SourceName, folder: Path) -> Source:
    """Return the source of the given name, read from ``folder``."""
    return DigitSource(folder) if name == "digits" else CifarSource(folder)
