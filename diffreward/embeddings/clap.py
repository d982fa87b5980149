"""CLAP: sounds and texts in one space, where a sound lies near what is said of it.

Source: Wu et al. (2023), ICASSP, arXiv:2211.06687, as published for transformers. Published code
embeds a random ten seconds of a longer sound, so that one sound has many embeddings; here every
sound is covered by windows, always the same ones, with a row for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffreward.audio.mel import mel_decibels
from diffreward.audio.resampling import mono
from diffreward.audio.windows import (
    covering_windows,
    pad,
    repeat,
    repeat_then_pad,
    trailing_windows,
)
from diffreward.backbones import EmbeddedTexts, features, load_once, locate
from diffreward.embedding import Embedding
from diffreward.samples import Samples, texts

_CONTEXT = 77
"""Tokens of a text that all published models were trained on, though their tables are longer."""

_PADDINGS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "repeatpad": repeat_then_pad,
    "repeat": repeat,
    "pad": pad,
}
_WINDOWS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "covering": covering_windows,
    "trailing": trailing_windows,
}


class ClapEmbedding(Embedding):
    """The embeddings of a sound's windows, (B, R, D), of length 1. Differentiable in the waves.

    Rate, spectrogram and length of a window are read from the folder of the model: 48 kHz and 10 s
    for the published ones. A sound is mixed down to mono. A sound up to one window long is repeated
    and padded as the model was trained, and has one row. A fused model sees each window as a sound
    of its own, and never the whole of a longer sound at once.

    The model is loaded by the first call, in float32, onto the device of the waves.

    Args:
        model: a hub id or a folder of a transformers `ClapModel` with its feature extractor and
            tokenizer, such as ``laion/clap-htsat-unfused`` or ``laion/larger_clap_music``.
        hop: seconds from one window to the next; those of a window if not given.
        windows: of longer sounds. ``"covering"``: windows hold sound only, the last one ends with
            the sound. ``"trailing"``: windows begin as long as there is sound and end in silence,
            also that of a shorter sound; with a hop of 1 s these are the rows of fadtk's CLAP.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if the hop is not positive, or there are no such windows.
    """

    def __init__(
        self,
        model: str,
        hop: float | None = None,
        windows: Literal["covering", "trailing"] = "covering",
    ) -> None:
        if hop is not None and not hop > 0:
            raise ValueError(f"hop is greater than 0 s, got {hop}")
        if windows not in _WINDOWS:
            raise ValueError(f"windows are one of {list(_WINDOWS)}, got {windows!r}")
        self.model = locate(model)
        self.hop = hop
        self.windows = windows
        self._clap: _Clap | None = None
        self._texts = EmbeddedTexts()

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        clap = self._loaded()
        waves = mono(samples, clap.rate)
        hop = clap.length if self.hop is None else max(round(self.hop * clap.rate), 1)
        if self.windows == "covering" and waves.shape[1] < clap.length:
            waves = clap.fill(waves, clap.length)
        windows = _WINDOWS[self.windows](waves, clap.length, hop)
        rows: Tensor = clap.embed_waves(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
        return rows

    def embed_text(self, texts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """The embeddings of B texts, (B, D), of length 1, without gradient; each computed once.

        Args:
            texts: one or more; longer ones are cut off at 77 tokens.
            device: where to compute, and where the result goes.
        """
        clap, device = self._loaded(), torch.device(device)
        clap.model.to(device)
        return self._texts(texts, clap.embed_text, device)

    def _loaded(self) -> _Clap:
        if self._clap is None:
            self._clap = _load(self.model)
        return self._clap

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the model by itself when first called.
        return {**self.__dict__, "_clap": None}


class ClapTextEmbedding(Embedding):
    """The embeddings of texts, (B, 1, D), of length 1: a reference for sounds made of captions.

    Args:
        model: as of `ClapEmbedding`.

    Raises:
        FileNotFoundError: if the folder does not exist.
    """

    def __init__(self, model: str) -> None:
        self._clap = ClapEmbedding(model)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B texts to (B, 1, D), without gradient."""
        return self._clap.embed_text(texts(samples), samples.device)[:, None]


@dataclass(frozen=True)
class _Clap:
    """A model with what its folder says about its inputs.

    Args:
        model: the `ClapModel`.
        tokenizer: of texts.
        context: tokens of a text, at most.
        rate: samples per second.
        length: samples of a window.
        fill: what makes a window of a shorter sound.
        hop: samples from one spectrum to the next.
        filters: (F, M) of the mel bands.
    """

    model: Any
    tokenizer: Any
    context: int
    rate: int
    length: int
    fill: Callable[[Tensor, int], Tensor]
    hop: int
    filters: Tensor

    def embed_waves(self, waves: Tensor) -> Tensor:
        """(N, D), of length 1, of N windows of mono sound, (N, length)."""
        self.model.to(waves.device)
        with torch.autocast(waves.device.type, enabled=False):
            spectrograms = mel_decibels(waves, self.filters, self.hop)[:, None]
            # To a fused model no window is an extract of something longer.
            longer = torch.zeros(len(waves), 1, dtype=torch.bool, device=waves.device)
            return features(
                self.model.get_audio_features(input_features=spectrograms, is_longer=longer)
            )

    def embed_text(self, text: str) -> Tensor:
        """(D,), of length 1, on the device of the model."""
        tokens = self.tokenizer(
            [text], truncation=True, max_length=self.context, return_tensors="pt"
        ).to(self.model.device)
        return features(
            self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
        )[0]


def _load(source: str) -> _Clap:
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    model: Any = load_once(
        ClapModel, source, lambda s: ClapModel.from_pretrained(s, dtype=torch.float32)
    )
    tokenizer = AutoTokenizer.from_pretrained(source)
    extractor = ClapFeatureExtractor.from_pretrained(source)
    texts = model.config.text_config
    # RoBERTa counts positions from the one after that of its padding.
    positions = texts.max_position_embeddings - texts.pad_token_id - 1
    # The authors trained on torchaudio's bands for fused models, on librosa's for the others.
    fused = extractor.truncation == "fusion"
    filters = extractor.mel_filters if fused else extractor.mel_filters_slaney
    if extractor.padding not in _PADDINGS:
        raise ValueError(
            f"{source} pads short sounds by {extractor.padding!r}; known are {list(_PADDINGS)}"
        )
    # What is made in inference mode could not be differentiated through later.
    with torch.inference_mode(False):
        bands = torch.from_numpy(filters).float()
    return _Clap(
        model=model,
        tokenizer=tokenizer,
        context=min(_CONTEXT, positions, tokenizer.model_max_length),
        rate=extractor.sampling_rate,
        length=int(extractor.nb_max_samples),
        fill=_PADDINGS[extractor.padding],
        hop=extractor.hop_length,
        filters=bands,
    )
