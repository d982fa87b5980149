"""Whether a coloured digit is the one its prompt asks for, judged by a small classifier."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from diffreward.backbones import halving_blocks
from diffreward.reward import Reward
from diffreward.samples import Samples, images

Part = Literal["all", "digit", "ink", "ground"]
PARTS = ("digit", "ink", "ground")


@dataclass(frozen=True)
class Vocabulary:
    """The words that prompts of coloured digits are made of.

    Args:
        digits: the ten digit words, in the order of the digits.
        colours: the colour names, in the order of the network's outputs.
    """

    digits: tuple[str, ...]
    colours: tuple[str, ...]

    def parse(self, prompt: str) -> tuple[int, int, int]:
        """The digit, the ink and the ground that a prompt asks for.

        Raises:
            ValueError: if the prompt is not like "a red seven on a blue background".
        """
        words = [word for word in prompt.lower().split() if word not in ("a", "an")]
        try:
            ink, digit, on, ground, background = words
            if (on, background) != ("on", "background"):
                raise ValueError
            return (
                self.digits.index(digit), self.colours.index(ink), self.colours.index(ground)
            )  # fmt: skip
        except ValueError:
            raise ValueError(
                f"{prompt!r} is not of the form 'a red seven on a blue background'; digits are "
                f"{', '.join(self.digits)}, colours are {', '.join(self.colours)}"
            ) from None


class DigitClassifier(nn.Module):
    """A convolutional network that names the digit, the ink and the ground of an image.

    Args:
        vocabulary: the words behind the outputs.
        width: channels of the first layer.
    """

    def __init__(self, vocabulary: Vocabulary, width: int = 32) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.size = 32
        widths = (3, width, 2 * width, 4 * width)
        self.blocks = halving_blocks(widths)
        self.dropout = nn.Dropout(0.3)
        classes = len(vocabulary.digits), len(vocabulary.colours), len(vocabulary.colours)
        # The 4x4 grid is kept: where a stroke lies tells digits apart.
        self.heads = nn.ModuleList(nn.Linear(16 * widths[-1], count) for count in classes)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """The logits of the digit, the ink and the ground.

        Args:
            pixels: (B, 3, H, W) in [0, 1], resized to 32x32 if they are larger or smaller.

        Returns:
            Three tensors, (B, 10), (B, 8) and (B, 8).
        """
        if pixels.shape[-2:] != (self.size, self.size):
            size = (self.size, self.size)
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        features = self.dropout(self.blocks(pixels * 2 - 1).flatten(1))
        return [head(features) for head in self.heads]


def load_classifier(folder: Path) -> DigitClassifier:
    """Load a classifier in evaluation mode, on the CPU.

    Args:
        folder: folder with ``config.json`` and ``model.safetensors``.

    Raises:
        FileNotFoundError: if one of the files is missing.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder / name} does not exist; run from the root of the repository, give the "
                "classifier's folder, or train one with assets/scripts/train_classifier.py"
            )
    config = json.loads((folder / "config.json").read_text())
    vocabulary = Vocabulary(tuple(config["digits"]), tuple(config["colours"]))
    network = DigitClassifier(vocabulary, config["width"])
    weights = load_file(folder / "model.safetensors")
    network.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return network.eval().requires_grad_(False)


@lru_cache(maxsize=4)
def _shared_classifier(folder: Path, device: torch.device) -> DigitClassifier:
    return load_classifier(folder).to(device)


@dataclass(frozen=True)
class DigitAlignment(Reward):
    """1 where the image shows what the prompt asks for, 0 elsewhere.

    The classifier that judges shares no training image with the bundled pipeline and CLIP model,
    so that it can tell whether a reward made images better or was merely fooled.

    Args:
        folder: folder of the classifier.
        part: what has to be right; "all" are the digit, the ink and the ground together.
    """

    folder: str = "assets/digits-classifier"
    part: Part = "all"

    def __post_init__(self) -> None:
        if self.part not in ("all", *PARTS):
            raise ValueError(f"part is all, digit, ink or ground, got {self.part!r}")

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B images and their B prompts to ones and zeros, (B,) float32.

        Raises:
            ValueError: if a prompt is not like "a red seven on a blue background".
        """
        return self.parts(samples, prompts)[self.part]

    @torch.no_grad()
    def parts(self, samples: Samples, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What is right about each image.

        Args:
            samples: B images.
            prompts: their B prompts.

        Returns:
            Ones and zeros, (B,) float32, under "digit", "ink", "ground" and "all".

        Raises:
            ValueError: if a prompt is not like "a red seven on a blue background".
        """
        pixels = images(samples).float()
        network = _shared_classifier(Path(self.folder), pixels.device)
        wanted = torch.tensor(
            [network.vocabulary.parse(prompt) for prompt in prompts], device=pixels.device
        )
        seen = torch.stack([logits.argmax(1) for logits in network(pixels)], dim=1)
        right = (seen == wanted).float()
        columns = dict(zip(PARTS, right.unbind(1), strict=True))
        return columns | {"all": right.prod(1)}
