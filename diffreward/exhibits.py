"""The samples of a page, embedded; in a report, the same prompt and seed over the evaluations."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffreward.record import TRAINED, Sample


@dataclass(frozen=True)
class Media:
    """A sample as the page shows it.

    Args:
        kind: "pixels" (an image to be enlarged), "picture", "text", "audio", "video" or "missing".
        content: the text, or the file as a data URI.
    """

    kind: str
    content: str


@dataclass(frozen=True)
class Frame:
    """A sample at one evaluation."""

    update: int
    media: Media
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Strip:
    """The sample of one prompt and seed at several evaluations."""

    prompt: str
    frames: Sequence[Frame]

    @property
    def direction(self) -> Literal["up", "down", "same", "unknown"]:
        """Where the trained reward went."""
        first, last = (self.frames[end].scores.get(TRAINED, math.nan) for end in (0, -1))
        if len(self.frames) < 2 or math.isnan(last - first):
            return "unknown"
        return "same" if last == first else "up" if last > first else "down"


def strips(
    galleries: Mapping[int, Sequence[Sample]], updates: Sequence[int], side: int, budget: int
) -> Iterator[Strip]:
    """The samples of the first update, followed through the others, within a number of bytes."""
    rows = [
        {(sample.file.name, sample.prompt): sample for sample in galleries[update]}
        for update in updates
    ]
    for key in rows[0] if rows else ():
        found = [
            (update, row[key]) for update, row in zip(updates, rows, strict=True) if key in row
        ]
        frames = [Frame(update, media(one.file, side), one.scores) for update, one in found]
        budget -= sum(len(frame.media.content) for frame in frames)
        if budget < 0:
            return
        yield Strip(key[1], frames)


def spread(updates: Sequence[int], columns: int) -> list[int]:
    """At most so many of the updates, evenly chosen, with the first and the last."""
    if len(updates) <= columns:
        return list(updates)
    return [updates[round(i * (len(updates) - 1) / (columns - 1))] for i in range(columns)]


def media(file: Path, side: int) -> Media:
    """A file as a page shows it; an image that is not small is scaled to this side in pixels."""
    try:
        return _MEDIA.get(file.suffix.lower(), _missing)(file, side)
    except OSError:
        return _missing(file, side)


def _missing(file: Path, side: int) -> Media:
    return Media("missing", file.name)


def _image(file: Path, side: int) -> Media:
    from PIL import Image

    with Image.open(file) as image:
        if image.format == "PNG" and max(image.size) <= 128:
            return Media("pixels", _uri("image/png", file.read_bytes()))
        image.thumbnail((side, side))
        smaller = io.BytesIO()
        image.convert("RGB").save(smaller, "JPEG", quality=85)
    return Media("picture", _uri("image/jpeg", smaller.getvalue()))


def _text(file: Path, side: int) -> Media:
    text = file.read_text(encoding="utf-8", errors="replace")
    return Media("text", text if len(text) <= 1000 else f"{text[:1000]} …")


def _audio(file: Path, side: int) -> Media:
    return Media("audio", _uri("audio/wav", file.read_bytes()))


def _video(file: Path, side: int) -> Media:
    return Media("video", _uri("video/mp4", file.read_bytes()))


def _animation(file: Path, side: int) -> Media:
    return Media("picture", _uri("image/gif", file.read_bytes()))


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


_MEDIA: Mapping[str, Callable[[Path, int], Media]] = {
    ".png": _image,
    ".jpg": _image,
    ".txt": _text,
    ".wav": _audio,
    ".mp4": _video,
    ".gif": _animation,
}
