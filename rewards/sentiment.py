"""Sentiment: how pleasant the words of a text are, by a list of words with known valence.

Source: the lexicon of Hutto and Gilbert (2014), VADER, ICWSM, in which ten people rated each word
from -4 to 4. Their rules for negation, intensifiers, capitals and punctuation are not applied: the
score is a plain mean over words, so that what moves it can be read off the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffreward.reward import Reward
from diffreward.samples import Samples, texts

_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")


class Sentiment(Reward):
    """The mean valence of the words that the lexicon knows, in [-4, 4]. Not differentiable.

    Words are runs of letters, with apostrophes and hyphens inside, in any case. Emoticons and
    entries of several words are never matched. A text without a known word is neutral and scores
    0, the same as one whose known words cancel out; so no text is without a score.

    Args:
        lexicon: a file in the format of ``vader_lexicon.txt`` of github.com/cjhutto/vaderSentiment:
            a word and its mean valence on each line, then anything, separated by tabs.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line has no finite valence, or the file has no line.
    """

    def __init__(self, lexicon: str) -> None:
        path = Path(lexicon).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no lexicon at {path.absolute()}; vader_lexicon.txt of "
                "github.com/cjhutto/vaderSentiment is one"
            )
        self.lexicon = lexicon
        self._valences = _read(path)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        scores = [self._score(text) for text in texts(samples)]
        return torch.tensor(scores, dtype=torch.float32)

    def _score(self, text: str) -> float:
        # Lexicons spell can't with the apostrophe of typewriters.
        words = _WORD.findall(text.lower().replace("\u2019", "'"))
        known = [self._valences[word] for word in words if word in self._valences]
        return math.fsum(known) / len(known) if known else 0.0


def _read(path: Path) -> dict[str, float]:
    """The valence of each entry, by the entry in lower case; of equal ones the last."""
    valences = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        word, _, rest = line.partition("\t")
        try:
            valence = float(rest.partition("\t")[0])
        except ValueError:
            valence = math.nan
        if not math.isfinite(valence):
            raise ValueError(
                f"line {number} of {path} is not a word, a tab and a valence: {line!r}"
            )
        valences[word.lower()] = valence
    if not valences:
        raise ValueError(f"{path} has no words")
    return valences
