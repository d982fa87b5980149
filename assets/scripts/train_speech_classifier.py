"""Train the judge of the speech pipeline: a classifier of the digit and the speaker.

python assets/scripts/train_speech_classifier.py
"""

import json
from pathlib import Path

import torch
from jsonargparse import auto_cli
from safetensors.torch import save_file
from speech import DIGITS, RATE, SPEAKERS, load_recordings
from speech_damage import damage
from torch import Tensor
from torch.nn import functional as F
from training import Run

from diffreward.audio.resampling import resample
from diffreward.rewards import spoken_digit
from diffreward.rewards.spoken_digit import SpokenDigitClassifier, SpokenWords


@torch.no_grad()
def accuracy(network: SpokenDigitClassifier, waves: Tensor, *answers: Tensor) -> list[float]:
    """The shares of digits and of speakers that are named right."""
    found = network(resample(waves, RATE, spoken_digit.RATE))
    pairs = zip(found, answers, strict=True)
    return [(logits.argmax(1) == answer).float().mean().item() for logits, answer in pairs]


def main(
    data: Path = Path("../shared/data/fsdd/fsdd.parquet"),
    work: Path = Path("outputs/assets/speech"),
    output: Path = Path("assets/speech-classifier"),
    steps: int = 900,
    batch: int = 64,
    width: int = 24,
    seed: int = 0,
) -> None:
    """Train a classifier and write it to ``output``.

    Args:
        data: The data set.
        work: Folder of the checkpoint.
        output: Folder of the classifier, replaced at every checkpoint.
        steps: Number of optimizer steps.
        batch: Recordings per step.
        width: Channels of the first layer.
        seed: Seed of the weights and the batches.
    """
    torch.manual_seed(seed)
    recordings, held_out = (load_recordings(data, part) for part in ("judge", "test"))
    network = SpokenDigitClassifier(SpokenWords(DIGITS, SPEAKERS), width)
    network.to(memory_format=torch.channels_last)

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(recordings), (batch,), generator=generator)
        waves = damage(recordings.clips(rows, generator), generator)
        with torch.autocast("cpu", torch.bfloat16):
            digits, speakers = network(resample(waves, RATE, spoken_digit.RATE))
        return F.cross_entropy(digits.float(), recordings.digits[rows]) + F.cross_entropy(
            speakers.float(), recordings.speakers[rows]
        )

    def export() -> None:
        output.mkdir(parents=True, exist_ok=True)
        config = {"digits": DIGITS, "speakers": SPEAKERS, "width": width}
        (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        aside = output / "model.aside"
        state = network.state_dict().items()
        save_file({name: value.half().contiguous() for name, value in state}, aside)
        network.eval()
        aside.replace(output / "model.safetensors")
        right = accuracy(network, held_out.audio().waves[:, 0], held_out.digits, held_out.speakers)
        network.train()
        print("held out, digits and speakers:", *(f"{share:.3f}" for share in right), flush=True)

    seconds = Run(network, work / "classifier.pt", steps, 2e-3, seed, decay=0.995).train(
        loss_of, export, every=300
    )
    print(f"trained in {seconds:.0f} s")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
