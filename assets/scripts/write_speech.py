"""Write what needs no training: the prompts of the speech pipeline, and recordings as exemplars.

From the root of the repository:

    python assets/scripts/write_speech.py
"""

import random
from pathlib import Path

import torch
from jsonargparse import auto_cli
from safetensors.torch import save_file
from speech import CLEAR_SPEAKERS, DIGITS, SPEAKERS, Recordings, caption, load_recordings

SETS = {"all": (SPEAKERS, 120), "clear": (CLEAR_SPEAKERS, 60)}
"""Speakers and number of recordings of each exemplar set, the earliest takes first."""


def held_out(digit: int, speaker: int) -> bool:
    """Whether a combination is kept from fine-tuning: twelve of sixty, two of each speaker."""
    return (digit + 3 * speaker) % 5 == 0


def write_prompts(folder: Path) -> None:
    """Write one prompt a line: combinations of digit and speaker, and digits to be judged on."""
    combinations = [(digit, who) for digit in range(len(DIGITS)) for who in range(len(SPEAKERS))]
    trained = [caption(*each) for each in combinations if not held_out(*each)]
    judged = [caption(*each) for each in combinations if held_out(*each)]
    judged += [caption(digit) for digit in range(len(DIGITS))]
    for name, prompts in (("speech_train.txt", trained), ("speech_heldout.txt", judged)):
        # So that the first few prompts, which reports show, are of all kinds.
        random.Random(0).shuffle(prompts)
        (folder / name).write_text("".join(f"{prompt}\n" for prompt in prompts))


def write_exemplars(recordings: Recordings, folder: Path) -> None:
    """Write the sets as 16-bit waves at 8 kHz, (N, T), each in a safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (speakers, count) in SETS.items():
        chosen = recordings.of(speakers)
        rows = torch.arange(count)
        # The clips have nothing above 4 kHz, so that every second sample says it all.
        waves = (chosen.clips(rows)[:, ::2] * 32767).round().clamp(-32768, 32767).to(torch.int16)
        stored = {
            "waves": waves.contiguous(),
            "rate": torch.tensor(8000),
            "digits": chosen.digits[rows],
            "speakers": chosen.speakers[rows],
        }
        about = {"source": "Free Spoken Digit Dataset, CC BY-SA 4.0", "speakers": str(SPEAKERS)}
        save_file(stored, folder / f"{name}.safetensors", about)


def main(
    data: Path = Path("../shared/data/fsdd/fsdd.parquet"),
    prompts: Path = Path("assets/prompts"),
    exemplars: Path = Path("assets/speech-exemplars"),
) -> None:
    """Write both.

    Args:
        data: The data set.
        prompts: Folder of the two prompt files.
        exemplars: Folder of the exemplar sets.
    """
    write_prompts(prompts)
    write_exemplars(load_recordings(data, "exemplars"), exemplars)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
