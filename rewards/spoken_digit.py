"""Whether a sound is the spoken digit that its prompt asks for, judged by a small classifier.

It stands to the bundled speech pipeline as `DigitAlignment` to the pipeline of coloured digits:
trained on other recordings than the pipeline and the CLAP model beside it, and looking at sound in
another way, so that it can tell whether a reward made speech better or was merely fooled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffreward.audio.mel import mel_decibels
from diffreward.audio.resampling import mono
from diffreward.backbones import halving_blocks, load_once, locate
from diffreward.reward import Reward
from diffreward.samples import Samples

RATE = 8000
"""Samples per second that the classifier hears: speech of a telephone."""
_WINDOW, _HOP, _BANDS = 256, 80, 40
"""Spectra of 32 ms, every 10 ms, in bands up to 3.8 kHz."""
_RANGE = 60.0
"""Decibels below the loudest moment at which silence begins."""


@dataclass(frozen=True)
class SpokenWords:
    """The words that prompts of spoken digits are made of.

    Args:
        digits: the ten digit words, in the order of the digits.
        speakers: the names, in the order of the network's outputs.
    """

    digits: tuple[str, ...]
    speakers: tuple[str, ...]

    def parse(self, prompt: str) -> tuple[int, int | None]:
        """The digit that a prompt asks for, and the speaker if it names one.

        Raises:
            ValueError: if the prompt is not like "seven" or "seven, george".
        """
        words = re.findall(r"\w+", prompt.lower())
        digits = [self.digits.index(word) for word in words if word in self.digits]
        speakers = [self.speakers.index(word) for word in words if word in self.speakers]
        if len(digits) != 1 or len(speakers) > 1 or len(digits) + len(speakers) != len(words):
            raise ValueError(
                f"{prompt!r} is not of the form 'seven' or 'seven, george'; digits are "
                f"{', '.join(self.digits)}, speakers are {', '.join(self.speakers)}"
            )
        return digits[0], speakers[0] if speakers else None


class SpokenDigitClassifier(nn.Module):
    """A convolutional network that names the digit and the speaker of a recording.

    Args:
        words: those behind the outputs.
        width: channels of the first layer.
    """

    filters: Tensor

    def __init__(self, words: SpokenWords, width: int = 24) -> None:
        super().__init__()
        self.words = words
        widths = (1, width, 2 * width, 4 * width)
        self.blocks = halving_blocks(widths)
        self.dropout = nn.Dropout(0.3)
        # Bands are kept apart, moments are not: how long the silence lasts says nothing.
        features = 2 * widths[-1] * _BANDS // 8
        self.heads = nn.ModuleList(
            nn.Linear(features, count) for count in (len(words.digits), len(words.speakers))
        )
        self.register_buffer("filters", _mel_filters(), persistent=False)

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the digit, (B, 10), and of the speaker, (B, 6).

        Loudness does not matter: all is relative to the loudest band of the recording.

        Args:
            waves: (B, T) at 8 kHz, more than 16 ms.
        """
        with torch.autocast(waves.device.type, enabled=False):
            levels = mel_decibels(waves, self.filters, _HOP)
            relative = levels - levels.amax((1, 2), keepdim=True)
        seen = self.blocks(1 + relative.clamp(min=-_RANGE)[:, None] * (2 / _RANGE))
        pooled = torch.cat([seen.mean(2), seen.amax(2)], dim=1).flatten(1)
        digit, speaker = (head(self.dropout(pooled)) for head in self.heads)
        return digit, speaker


def load_spoken_digit_classifier(folder: str) -> SpokenDigitClassifier:
    """Load a classifier from a folder with ``config.json`` and ``model.safetensors``.

    Raises:
        FileNotFoundError: if one of the files is missing.
    """
    config = json.loads((Path(folder) / "config.json").read_text())
    words = SpokenWords(tuple(config["digits"]), tuple(config["speakers"]))
    network = SpokenDigitClassifier(words, config["width"])
    weights = load_file(Path(folder) / "model.safetensors")
    network.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return network


class SpokenDigit(Reward):
    """The log-probability of the prompt's digit, in nats, at most 0.

    If the prompt names a speaker, that of the speaker is added. Differentiable in the waves.

    Args:
        folder: folder of the classifier.

    Raises:
        FileNotFoundError: if there is no classifier in the folder.
    """

    def __init__(self, folder: str = "assets/speech-classifier") -> None:
        self.folder = locate(folder)
        self._network: SpokenDigitClassifier | None = None

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B sounds of any rate and their B prompts to log-probabilities, (B,) float32.

        Raises:
            ValueError: if a prompt is not like "seven" or "seven, george".
        """
        waves = mono(samples, RATE)
        network = self._loaded().to(waves.device)
        wanted = [network.words.parse(prompt) for prompt in prompts]
        digits, speakers = (logits.log_softmax(1) for logits in network(waves))
        scores = [
            digit[d] if s is None else digit[d] + speaker[s]
            for digit, speaker, (d, s) in zip(digits, speakers, wanted, strict=True)
        ]
        return torch.stack(scores)

    def _loaded(self) -> SpokenDigitClassifier:
        if self._network is None:
            self._network = load_once(
                SpokenDigitClassifier, self.folder, load_spoken_digit_classifier
            )
        return self._network

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_network": None}


def _mel_filters() -> Tensor:
    """(129, 40): triangles on the HTK mel scale, from 100 to 3800 Hz."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        _WINDOW // 2 + 1, _BANDS, 100.0, 3800.0, RATE, norm=None, mel_scale="htk"
    )
    return torch.from_numpy(filters).float()
