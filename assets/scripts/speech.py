"""Recordings of spoken digits, their captions, and which model may learn from which of them.

The recordings are the Free Spoken Digit Dataset: six speakers, ten digits, fifty takes of each.
"""

import io
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

from diffreward.samples import Audio

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
CLEAR_SPEAKERS = ("george", "jackson")
"""Two speakers, a narrower reference than all six; which two was an arbitrary choice."""

RATE = 16000
"""Samples per second that the models work at; the recordings hold half as many."""
LENGTH = 12288
"""Samples of a clip, 0.768 s. One recording in fifty is longer, and is cut."""

TAKES = {
    "test": range(0, 5),
    "exemplars": range(5, 9),
    "pipeline": range(10, 35),
    "judge": range(35, 50),
}
"""Who sees which takes. No model trains on the first ten; the pipeline and the CLAP model share
theirs, the classifier has its own."""

_FADE = 80
"""Samples at 8 kHz over which a recording ends, so that silence does not begin with a click."""
_LATEST = 480
"""Samples at 8 kHz that a recording may start late: 60 ms."""


def caption(digit: int, speaker: int | None = None) -> str:
    """The prompt of a digit, "seven", or of a digit and its speaker, "seven, george"."""
    return DIGITS[digit] if speaker is None else f"{DIGITS[digit]}, {SPEAKERS[speaker]}"


def captions() -> list[str]:
    """All 70 prompts: the digits alone first, then those of each speaker."""
    speakers = (None, *range(len(SPEAKERS)))
    return [caption(digit, speaker) for speaker in speakers for digit in range(len(DIGITS))]


def caption_row(digit: Tensor, speaker: Tensor, named: Tensor) -> Tensor:
    """Where the caption of a recording stands in `captions`, (B,).

    Args:
        digit: (B,) int64.
        speaker: (B,) int64.
        named: (B,) bool, whether the caption names the speaker.
    """
    return torch.where(named, (speaker + 1) * len(DIGITS) + digit, digit)


@dataclass(frozen=True)
class Recordings:
    """Recordings at 8 kHz with a peak of 0.7, and who says what.

    Args:
        waves: one (T,) tensor each, float32.
        digits: (N,) int64.
        speakers: (N,) int64, rows of `SPEAKERS`.
    """

    waves: tuple[Tensor, ...]
    digits: Tensor
    speakers: Tensor

    def __len__(self) -> int:
        return len(self.waves)

    def clips(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Some recordings at 16 kHz, cut or silent at the end, (B, LENGTH).

        Args:
            rows: (B,) int64.
            generator: draws a start up to 60 ms late; 15 ms without it.
        """
        late = torch.full((len(rows),), _LATEST // 4)
        if generator is not None:
            late = torch.randint(_LATEST, (len(rows),), generator=generator)
        clips = torch.zeros(len(rows), LENGTH // 2)
        for clip, row, start in zip(clips, rows.tolist(), late.tolist(), strict=True):
            wave = self.waves[row][: len(clip) - start].clone()
            wave[-_FADE:] *= torch.linspace(1, 0, _FADE)
            clip[start : start + len(wave)] = wave
        return doubled(clips)

    def audio(self) -> Audio:
        """All recordings, (N, 1, LENGTH)."""
        return Audio(self.clips(torch.arange(len(self)))[:, None], RATE)

    def of(self, speakers: Sequence[str]) -> "Recordings":
        """Those of some speakers."""
        wanted = torch.tensor([SPEAKERS.index(name) for name in speakers])
        rows = torch.isin(self.speakers, wanted).nonzero()[:, 0]
        waves = tuple(self.waves[row] for row in rows.tolist())
        return Recordings(waves, self.digits[rows], self.speakers[rows])


def doubled(waves: Tensor) -> Tensor:
    """Sounds (..., T) at twice the rate, (..., 2 T), with nothing above the old half rate."""
    spectrum = torch.fft.rfft(waves)
    return 2 * torch.fft.irfft(spectrum, 2 * waves.shape[-1])


def load_recordings(file: Path, part: str) -> Recordings:
    """Read one part of the data set.

    Args:
        file: ``fsdd.parquet``, with the columns audio (bytes of a wave file), digit, speaker, take.
        part: a key of `TAKES`.
    """
    # Imported here because models can be used without the data.
    import pandas

    table = pandas.read_parquet(file)
    table = table[table["take"].isin(TAKES[part])].sort_values(["take", "speaker", "digit"])
    waves = tuple(_decode(audio["bytes"]) for audio in table["audio"])
    speakers = [SPEAKERS.index(name) for name in table["speaker"]]
    return Recordings(waves, torch.tensor(table["digit"].tolist()), torch.tensor(speakers))


def _decode(content: bytes) -> Tensor:
    with wave.open(io.BytesIO(content)) as sound:
        frames = sound.readframes(sound.getnframes())
    samples = torch.from_numpy(numpy.frombuffer(frames, "<i2").astype("float32"))
    return 0.7 * samples / samples.abs().max()
