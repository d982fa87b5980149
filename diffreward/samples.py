"""What diffusion models produce and rewards score: batches that know their kind and range.

Each kind has a function of the same name in lower case, by which a reward says what it scores.
"""

from __future__ import annotations

import wave
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
    """A batch of B decoded samples. A kind is a subclass that checks shapes when made.

    Its fields that are tensors or tuples have one entry per sample; the others hold for the batch.
    """

    def __len__(self) -> int:
        return len(next(iter(self._columns().values())))

    def __getitem__(self, rows: Tensor | slice) -> Self:
        columns = self._columns().items()
        return replace(self, **{name: _chosen(column, rows) for name, column in columns})

    @property
    def device(self) -> torch.device:
        """Where the samples are; what is no tensor is on the CPU."""
        return next(
            (c.device for c in self._columns().values() if isinstance(c, Tensor)),
            torch.device("cpu"),
        )

    def to(self, device: torch.device | str) -> Self:
        """The same samples on another device, where tensors alone can be."""
        columns = self._columns().items()
        return replace(self, **{name: c.to(device) for name, c in columns if isinstance(c, Tensor)})

    def detach(self) -> Self:
        """The same samples without the graph that made them."""
        columns = self._columns().items()
        return replace(self, **{name: c.detach() for name, c in columns if isinstance(c, Tensor)})

    def write(self, folder: Path, first: int = 0, digits: int = 3) -> list[str]:
        """Write each sample to a file of its own, 000.<suffix> and so on; returns the names.

        Args:
            folder: created if need be.
            first: number of the first sample, if others have been written before.
            digits: of the numbers, with zeros in front.
        """
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"{first + i:0{digits}d}{self._suffix}" for i in range(len(self))]
        for i, name in enumerate(names):
            self._write_one(i, folder / name)
        return names

    _suffix: ClassVar[str] = ".txt"

    def _write_one(self, row: int, file: Path) -> None:
        values = next(iter(self._columns().values()))[row]
        file.write_text(" ".join(f"{value:.6g}" for value in values.flatten().tolist()))

    def _columns(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor | tuple)}


def concatenate(parts: Sequence[Samples]) -> Samples:
    """One batch of all the parts.

    Raises:
        TypeError: if the parts are of several kinds.
        ValueError: if there are no parts, or they differ in what holds for a whole batch.
    """
    if not parts:
        raise ValueError("cannot concatenate zero batches of samples")
    kinds = {type(part).__name__ for part in parts}
    if len(kinds) > 1:
        raise TypeError(f"cannot concatenate {sorted(kinds)}")
    joined: dict[str, Any] = {}
    for field in fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], Tensor):
            joined[field.name] = torch.cat(values)
        elif isinstance(values[0], tuple):
            joined[field.name] = tuple(entry for value in values for entry in value)
        elif any(value != values[0] for value in values):
            raise ValueError(f"the parts have one {field.name}, got {values}")
    return replace(parts[0], **joined)


def _chosen(column: Any, rows: Tensor | slice) -> Any:
    """Some entries of a column, a tensor or a tuple, by what chooses rows of a tensor."""
    if isinstance(column, Tensor):
        return column[rows]
    numbers = torch.arange(len(column))[rows if isinstance(rows, slice) else rows.cpu()]
    return tuple(column[i] for i in numbers.tolist())


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
        _check_floating("pixels", "[0, 1]", self.pixels)

    def uint8(self) -> Tensor:
        """The pixels as 8-bit levels, (B, H, W, 3), on the CPU."""
        return _levels(self.pixels)

    def pil(self) -> list[Image]:
        """The B images as PIL images."""
        from PIL import Image

        return [Image.fromarray(image.numpy()) for image in self.uint8()]

    def _write_one(self, row: int, file: Path) -> None:
        self[row : row + 1].pil()[0].save(file)


@dataclass(frozen=True)
class Videos(Samples):
    """RGB videos without sound.

    Args:
        frames: (B, F, 3, H, W), floating point, in [0, 1].
        fps: frames per second. A few pictures per second let a short clip be looked at.

    Raises:
        ValueError: if the shape or the dtype is another, or the frames have no speed.
    """

    frames: Tensor
    fps: float = 8.0

    _suffix: ClassVar[str] = ".gif"

    def __post_init__(self) -> None:
        if self.frames.ndim != 5 or self.frames.shape[2] != 3:
            raise ValueError(f"videos are (B, F, 3, H, W), got {tuple(self.frames.shape)}")
        _check_floating("frames", "[0, 1]", self.frames)
        if not self.fps > 0:
            raise ValueError(f"fps is greater than 0, got {self.fps}")

    def uint8(self) -> Tensor:
        """The frames as 8-bit levels, (B, F, H, W, 3), on the CPU."""
        return _levels(self.frames)

    def _write_one(self, row: int, file: Path) -> None:
        first, *others = Images(self.frames[row]).pil()
        # GIF counts time in hundredths of a second.
        duration = max(1, round(100 / self.fps)) * 10
        first.save(file, save_all=True, append_images=others, duration=duration, loop=0)


@dataclass(frozen=True)
class Audio(Samples):
    """Sounds of C channels. Their range is not checked: that would wait for the device.

    Args:
        waves: (B, C, T), floating point, in [-1, 1].
        rate: samples per second.

    Raises:
        ValueError: if the shape or the dtype is another, or the rate is not positive.
    """

    waves: Tensor
    rate: int

    _suffix: ClassVar[str] = ".wav"

    def __post_init__(self) -> None:
        if self.waves.ndim != 3:
            raise ValueError(f"audio is (B, C, T), got {tuple(self.waves.shape)}")
        _check_floating("waves", "[-1, 1]", self.waves)
        if self.rate < 1:
            raise ValueError(f"rate is at least 1 per second, got {self.rate}")

    def _write_one(self, row: int, file: Path) -> None:
        levels = (self.waves[row].detach().float().clamp(-1, 1) * 32767).round()
        with wave.open(str(file), "wb") as sound:
            sound.setnchannels(len(levels))
            sound.setsampwidth(2)
            sound.setframerate(self.rate)
            sound.writeframes(levels.T.cpu().numpy().astype("<i2").tobytes())


@dataclass(frozen=True)
class Texts(Samples):
    """What a language model wrote: B strings.

    Raises:
        TypeError: if the strings are anything but a tuple of strings.
    """

    strings: tuple[str, ...]

    def __post_init__(self) -> None:
        kinds = sorted({type(string).__name__ for string in self.strings})
        if not isinstance(self.strings, tuple) or kinds not in ([], ["str"]):
            got = type(self.strings).__name__
            raise TypeError(f"texts are a tuple of str, got {got} of {', '.join(kinds)}")

    def _write_one(self, row: int, file: Path) -> None:
        file.write_text(self.strings[row], encoding="utf-8")


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


def videos(samples: Samples) -> Tensor:
    """The frames, (B, F, 3, H, W) in [0, 1].

    Raises:
        TypeError: if the samples are something else.
    """
    return _expect(samples, Videos).frames


def audio(samples: Samples) -> Tensor:
    """The waves, (B, C, T) in [-1, 1].

    Raises:
        TypeError: if the samples are something else.
    """
    return _expect(samples, Audio).waves


def texts(samples: Samples) -> tuple[str, ...]:
    """The B strings.

    Raises:
        TypeError: if the samples are something else.
    """
    return _expect(samples, Texts).strings


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


def _check_floating(name: str, interval: str, values: Tensor) -> None:
    if not values.is_floating_point():
        raise ValueError(f"{name} are floating point in {interval}, got {values.dtype}")


def _levels(pixels: Tensor) -> Tensor:
    """Pixels (..., 3, H, W) as 8-bit levels (..., H, W, 3) on the CPU."""
    levels = (pixels.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)
    return levels.movedim(-3, -1).cpu()
