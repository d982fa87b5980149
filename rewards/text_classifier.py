"""What a classifier of texts says: acceptability, toxicity, sentiment, formality and the like.

Classifiers that FK steering uses, Singhal et al. (2025), arXiv:2501.06848, section 4.2, and its
code: ``textattack/roberta-base-CoLA`` (label 1: acceptable), ``SkolkovoInstitute/
roberta_toxicity_classifier`` (label 1: toxic), ``cardiffnlp/twitter-roberta-base-sentiment``,
``cointegrated/roberta-base-formality``; to judge toxicity, ``textdetox/xlmr-large-toxicity-
classifier``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffreward.backbones import language_model, locate
from diffreward.reward import Reward
from diffreward.samples import Samples, texts

_KIND = "AutoModelForSequenceClassification"


class TextClassifier(Reward):
    """The log-probability of a label, in nats, at most 0. Not differentiable.

    A text longer than the model's context is judged by what the context holds. Classifiers are
    easily led outside of what they were trained on: judge by another one.

    Args:
        model: a hub id or a folder of a model for sequence classification of transformers with its
            tokenizer; loaded by the first call, in float32.
        label: its name in the model's configuration, or its number.
        rows: texts that are evaluated at once.

    Raises:
        FileNotFoundError: if the folder does not exist or holds no model.
        ValueError: if rows is below 1; at the first call, if the model has no such label.
    """

    def __init__(self, model: str, label: str | int, rows: int = 32) -> None:
        if rows < 1:
            raise ValueError(f"rows is at least 1, got {rows}")
        self.model, self.label, self.rows = locate(model), label, rows
        self._network: Any = None
        self._tokenizer: Any = None

    @torch.no_grad()
    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        strings = list(texts(samples))
        if self._network is None:
            self._network, self._tokenizer = language_model(_KIND, self.model)
        column, device = self._column(), next(self._network.parameters()).device
        order = sorted(range(len(strings)), key=lambda i: len(strings[i]))
        scores = torch.empty(len(strings))
        for i in range(0, len(order), self.rows):
            chosen = order[i : i + self.rows]
            inputs = self._tokenizer(
                [strings[row] for row in chosen],
                padding=True,
                truncation=True,
                max_length=_context(self._network, self._tokenizer),
                return_tensors="pt",
            )
            with torch.autocast(device.type, enabled=False):
                logits = self._network(**inputs.to(device)).logits
            scores[chosen] = logits.log_softmax(-1)[:, column].cpu()
        return scores

    def _column(self) -> int:
        names = {int(number): name for number, name in self._network.config.id2label.items()}
        known: dict[str | int, int] = {number: number for number in names}
        known |= {name: number for number, name in names.items()}
        if self.label not in known:
            raise ValueError(f"{self.model} has the labels {names}, got {self.label!r}")
        return known[self.label]

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the model by itself when first called.
        return {**self.__dict__, "_network": None, "_tokenizer": None}


def _context(network: Any, tokenizer: Any) -> int:
    """Tokens that the model can see. Those of RoBERTa begin to count after the padding's number."""
    places = network.config.max_position_embeddings - (network.config.pad_token_id or 0) - 1
    return min(int(places), int(tokenizer.model_max_length))
