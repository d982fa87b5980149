"""Train the judge: a classifier of the digit, the ink and the ground of an image.

python assets/scripts/train_classifier.py --data ../shared/data/mnist
"""

import json
from pathlib import Path

import torch
from degrade import degrade
from digits import COLOUR_NAMES, DIGITS, Renderer, combinations, load_digits
from jsonargparse import auto_cli
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from training import Run

from diffreward.rewards.digit_alignment import DigitClassifier, Vocabulary


def main(
    data: Path = Path("../shared/data/mnist"),
    work: Path = Path("outputs/assets/classifier"),
    output: Path = Path("assets/digits-classifier"),
    steps: int = 3000,
    batch: int = 128,
    width: int = 32,
    seed: int = 0,
) -> None:
    """Train a classifier and write it to ``output``.

    Args:
        data: Folder of the MNIST test set.
        work: Folder of the checkpoint.
        output: Folder of the classifier, replaced at every checkpoint.
        steps: Number of optimizer steps.
        batch: Images per step.
        width: Channels of the first layer.
        seed: Seed of the weights and the batches.
    """
    torch.manual_seed(seed)
    renderer = Renderer(load_digits(data, "classifier-train"), combinations())
    network = DigitClassifier(Vocabulary(DIGITS, COLOUR_NAMES), width)

    def loss_of(generator: torch.Generator) -> Tensor:
        drawn = renderer.batch(batch, generator)
        outputs = network(degrade(drawn.pixels, generator))
        losses = [
            F.cross_entropy(logits, drawn.targets[:, part]) for part, logits in enumerate(outputs)
        ]
        return torch.stack(losses).sum()

    def export() -> None:
        output.mkdir(parents=True, exist_ok=True)
        config = {"digits": DIGITS, "colours": COLOUR_NAMES, "width": width}
        (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        aside = output / "model.aside"
        save_file(network.half().state_dict(), aside)
        network.float()
        aside.replace(output / "model.safetensors")

    seconds = Run(network, work / "classifier.pt", steps, 2e-3, seed, decay=0.995).train(
        loss_of, export, every=500
    )
    print(f"trained in {seconds:.0f} s")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
