"""Measure the bundled speech models; writes the quality section of ``assets/README.md``.

python assets/scripts/measure_speech.py
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from jsonargparse import auto_cli
from speech import DIGITS, SPEAKERS, caption_row, captions, load_recordings
from torch import Tensor

from diffreward.audio.resampling import mono
from diffreward.diffusion import decode, draw
from diffreward.embeddings.clap import ClapEmbedding
from diffreward.pipelines.audioldm2 import AudioLDM2
from diffreward.random import stream
from diffreward.rewards.audio_aesthetics import AudioAesthetics
from diffreward.rewards.spoken_digit import RATE, load_spoken_digit_classifier
from diffreward.samples import Audio

MARK = "<!-- written by scripts/measure_speech.py -->"
SETTINGS = ((10, 1.0, 1.0), (20, 1.0, 1.0), (10, 0.0, 1.0), (10, 1.0, 2.0))
"""Steps, eta and guidance."""


class Judges:
    """What listens to sounds.

    Args:
        assets: Folder of the models.
    """

    def __init__(self, assets: Path) -> None:
        self._classifier = load_spoken_digit_classifier(str(assets / "speech-classifier")).eval()
        self._clap = ClapEmbedding(str(assets / "speech-clap"))
        head = assets / "speech-clap" / "aesthetics.safetensors"
        self._aesthetics = AudioAesthetics(self._clap, str(head))

    @torch.no_grad()
    def row(self, sounds: Audio, digits: Tensor, speakers: Tensor) -> str:
        """The cells of a table: digits, speakers, both; CLAP's digits and 60 captions; rating."""
        found = self._classifier(mono(sounds, RATE))
        right = [
            logits.argmax(1) == wanted
            for logits, wanted in zip(found, (digits, speakers), strict=True)
        ]
        cosines = self._clap(sounds, [""] * len(sounds))[:, 0] @ self._clap.embed_text(captions()).T
        ten = cosines[:, : len(DIGITS)].argmax(1) == digits
        named = caption_row(digits, speakers, torch.ones(len(digits), dtype=torch.bool))
        sixty = cosines[:, len(DIGITS) :].argmax(1) + len(DIGITS) == named
        shares = " | ".join(percent(each) for each in (*right, right[0] & right[1], ten, sixty))
        rating = self._aesthetics(sounds, [""] * len(sounds)).mean().item()
        return f"{shares} | {rating:.2f}"


def percent(right: Tensor) -> str:
    """A share in percent with its standard error."""
    share = right.double().mean().item()
    return f"{100 * share:.1f} ± {100 * (share * (1 - share) / len(right)) ** 0.5:.1f}"


def sampled(folder: Path, setting: tuple[int, float, float], each: int) -> Audio:
    """Sounds of the 60 prompts with a speaker, one prompt after the other, ``each`` times."""
    steps, eta, guidance = setting
    model = AudioLDM2(str(folder), steps, eta=eta, guidance_scale=guidance)
    condition = model.encode(captions()[len(DIGITS) :] * each)
    sources = [
        [stream(0, part, row) for row in range(len(condition))] for part in ("start", "steps")
    ]
    sounds = decode(model, draw(model, condition, *sources, rows=60), rows=60)
    assert isinstance(sounds, Audio)
    return sounds


def milliseconds(work: Callable[[], object], repeats: int = 9) -> float:
    """The median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def report(assets: Path, data: Path, each: int) -> str:
    """The measurements, in Markdown."""
    judges = Judges(assets)
    count = len(DIGITS) * len(SPEAKERS)
    digits = torch.arange(len(DIGITS)).repeat(len(SPEAKERS) * each)
    speakers = torch.arange(len(SPEAKERS)).repeat_interleave(len(DIGITS)).repeat(each)
    cells = "digit | speaker | both | CLAP, digit of 10 | CLAP, caption of 60 | rating"
    lines = [f"| sounds | {cells} |", "| --- | " + " | ".join(["---"] * 6) + " |"]
    held_out = load_recordings(data, "test")
    row = judges.row(held_out.audio(), held_out.digits, held_out.speakers)
    lines.append(f"| {len(held_out)} recordings that no model has seen | {row} |")
    for setting in SETTINGS:
        steps, eta, guidance = setting
        row = judges.row(sampled(assets / "speech", setting, each), digits, speakers)
        name = f"{steps} steps, eta {eta:g}, guidance {guidance:g}"
        lines.append(f"| samples, {name} | {row} |")
    model = AudioLDM2(str(assets / "speech"), 10, guidance_scale=1.0)
    with torch.no_grad():
        condition = model.encode(captions()[:10])
        x = model.prior(10)
        step = milliseconds(lambda: model.step(x, 5, condition)) / 10
        decoding = milliseconds(lambda: model.decode(x)) / 10
    lines += [
        "",
        f"Percent right ± standard error; {count * each} samples in each row. A step takes "
        f"{step:.1f} ms and decoding {decoding:.1f} ms a sample, in batches of ten, with "
        f"{torch.get_num_threads()} thread of a CPU shared with other work.",
    ]
    return "\n".join(lines)


def main(
    assets: Path = Path("assets"),
    data: Path = Path("../shared/data/fsdd/fsdd.parquet"),
    each: int = 5,
) -> None:
    """Measure and write the results between the marks of the README.

    Args:
        assets: Folder of the models and the README.
        data: The data set.
        each: Samples per prompt.
    """
    readme = assets / "README.md"
    before, _, after = readme.read_text().split(MARK)
    readme.write_text(MARK.join([before, f"\n\n{report(assets, data, each)}\n\n", after]))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
