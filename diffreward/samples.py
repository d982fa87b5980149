"""What diffusion models produce and rewards score: tensors that know their kind and range.

Each kind has a function of the same name in lower case, by which a reward says what it scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


Kind = TypeVar("Kind", bound="Samples")


@dataclass(frozen=True)
class Samples:
    """A batch of B decoded samples. A kind is a subclass that checks shapes when made."""

    def __len__(self) -> int:
        return len(next(iter(self._tensors().values())))

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return replace(self, **{name: tensor[rows] for name, tensor in self._tensors().items()})

    @property
    def device(self) -> torch.device:
        """Where the samples are."""
        device: torch.device = next(iter(self._tensors().values())).device
        return device

    def to(self, device: torch.device | str) -> Self:
        """The same samples on another device."""
        return replace(self, **{name: t.to(device) for name, t in self._tensors().items()})

    def write(self, folder: Path) -> list[str]:
        """Write each sample to a file of its own, 000.<suffix> and so on; returns the names."""
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"{i:03d}{self._suffix}" for i in range(len(self))]
        for i, name in enumerate(names):
            self._write_one(i, folder / name)
        return names

    _suffix: ClassVar[str] = ".txt"

    def _write_one(self, row: int, file: Path) -> None:
        values = next(iter(self._tensors().values()))[row]
        file.write_text(" ".join(f"{value:.6g}" for value in values.flatten().tolist()))

    def _tensors(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def concatenate(parts: Sequence[Samples]) -> Samples:
    """One batch of all the parts, which are of one kind.

    Raises:
        ValueError: if there are no parts.
    """
    if not parts:
        raise ValueError("cannot concatenate zero batches of samples")
    columns = [part._tensors() for part in parts]
    return replace(
        parts[0], **{name: torch.cat([column[name] for column in columns]) for name in columns[0]}
    )


@dataclass(frozen=True)
class Images(Samples):
    """RGB images.

    Args:
        pixels: (B, 3, H, W), floating point, in [0, 1].

    Raises:
        ValueError: if the shape or the dtype is another.
    """

    pixels: Tensor

    _suffix: ClassVar[str] = ".png"

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.shape[1] != 3:
            raise ValueError(f"images are (B, 3, H, W), got {tuple(self.pixels.shape)}")
        if not self.pixels.is_floating_point():
            raise ValueError(f"pixels are floating point in [0, 1], got {self.pixels.dtype}")

    def uint8(self) -> Tensor:
        """The pixels as 8-bit levels, (B, H, W, 3), on the CPU."""
        levels = (self.pixels.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)
        return levels.permute(0, 2, 3, 1).cpu()

    def pil(self) -> list[Image]:
        """The B images as PIL images."""
        from PIL import Image

        return [Image.fromarray(image.numpy()) for image in self.uint8()]

    def _write_one(self, row: int, file: Path) -> None:
        self[row : row + 1].pil()[0].save(file)


@dataclass(frozen=True)
class Tokens(Samples):
    """Sequences over a finite alphabet.

    Args:
        ids: (B, L) int64, or (B, L, V) floating point: one-hot rows or their relaxation.
        alphabet: the V symbols, in the order of the ids.

    Raises:
        ValueError: if the shape does not fit the alphabet.
    """

    ids: Tensor
    alphabet: str

    def __post_init__(self) -> None:
        relaxed = self.ids.ndim == 3 and self.ids.shape[2] == len(self.alphabet)
        if not (relaxed or self.ids.ndim == 2):
            raise ValueError(
                f"tokens are (B, L) ids or (B, L, {len(self.alphabet)}) weights, "
                f"got {tuple(self.ids.shape)}"
            )

    def strings(self) -> list[str]:
        """The B sequences as strings; relaxed tokens by their largest weight."""
        ids = self.ids.argmax(-1) if self.ids.ndim == 3 else self.ids
        return ["".join(self.alphabet[i] for i in row) for row in ids.tolist()]

    def _write_one(self, row: int, file: Path) -> None:
        file.write_text(self[row : row + 1].strings()[0])


@dataclass(frozen=True)
class Vectors(Samples):
    """Points: (B, D), floating point. What the exact worlds produce."""

    values: Tensor

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise ValueError(f"vectors are (B, D), got {tuple(self.values.shape)}")


def images(samples: Samples) -> Tensor:
    """The pixels, (B, 3, H, W) in [0, 1].

    Raises:
        TypeError: if the samples are something else.
    """
    return _expect(samples, Images).pixels


def tokens(samples: Samples) -> Tensor:
    """The ids (B, L) or relaxed weights (B, L, V).

    Raises:
        TypeError: if the samples are something else.
    """
    return _expect(samples, Tokens).ids


def vectors(samples: Samples) -> Tensor:
    """The values, (B, D).

    Raises:
        TypeError: if the samples are something else.
    """
    return _expect(samples, Vectors).values


def _expect(samples: Samples, kind: type[Kind]) -> Kind:
    if not isinstance(samples, kind):
        raise TypeError(
            f"this reward scores {kind.__name__}; the model produced {type(samples).__name__}"
        )
    return samples
