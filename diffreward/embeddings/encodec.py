"""EnCodec: a sound as its neural codec describes it, before it is rounded to codes.

Source: Defossez et al. (2022), arXiv:2210.13438; as an embedding for distances, Gui et al. (2024),
arXiv:2311.01616 (fadtk). The rows hold what is needed to play the sound again: noise and small
defects as much as what is heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffreward.audio.resampling import waves_at
from diffreward.backbones import load_once, locate
from diffreward.embedding import Embedding
from diffreward.samples import Samples


class Encodec(Embedding):
    """A row of 128 features for each frame, 1/75 s or 1/150 s. Differentiable in the waves.

    Rate and channels are the model's: 24 kHz mono, or 48 kHz stereo, which encodes every second on
    its own. As in fadtk, the loudness of that second is kept, which the codec itself takes out. The
    encoder, of 7 million parameters, is loaded by the first call, in float32, onto the device of
    the waves.

    Args:
        model: a hub id or a folder of a transformers `EncodecModel`: ``facebook/encodec_24khz`` or
            ``facebook/encodec_48khz``.

    Raises:
        FileNotFoundError: if the folder does not exist.
    """

    def __init__(self, model: str = "facebook/encodec_24khz") -> None:
        self.model = locate(model)
        self._model: Any = None

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B sounds to (B, R, 128), float32.

        Raises:
            TypeError: if the samples are no sounds.
            ValueError: if they have several channels, and not as many as the model.
        """
        if self._model is None:
            self._model = _load(self.model)
        config = self._model.config
        waves = waves_at(samples, config.sampling_rate, config.audio_channels)
        encoder = self._model.to(waves.device).encoder
        parts = waves.split(config.chunk_length or waves.shape[2], dim=2)
        with torch.autocast(waves.device.type, enabled=False):
            return torch.cat([encoder(part) for part in parts], dim=2).mT

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the model by itself when first called.
        return {**self.__dict__, "_model": None}


def _load(source: str) -> Any:
    from transformers import EncodecModel

    model: Any = load_once(
        EncodecModel, source, lambda s: EncodecModel.from_pretrained(s, dtype=torch.float32)
    )
    # cuDNN gives recurrent layers no gradient in evaluation mode. These have no dropout, so that
    # they compute the same in training mode.
    for layer in model.modules():
        if isinstance(layer, nn.LSTM):
            layer.train()
    return model
