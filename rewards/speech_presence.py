"""How much of a sound is speech, by the voice activity detector of Silero.

Source: Silero Team (2021), github.com/snakers4/silero-vad, version 5 and its successors, at 16 kHz.
The published programs carry their state from call to call and give no usable gradient in silence,
so the network is written out here in torch: a spectrogram, four convolutions and an LSTM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreward.audio.resampling import mono
from diffreward.backbones import load_once
from diffreward.reward import Reward
from diffreward.samples import Samples

_RATE = 16_000
# The network reads chunks of 32 ms, each after the last 4 ms of the chunk before.
_CHUNK, _CONTEXT = 512, 64

# Our layers by their names in silero_vad.jit; silero_vad_16k.safetensors has ours.
_LAYERS = {
    "stft.forward_basis_buffer": "stft_conv.weight",
    "encoder.0.reparam_conv": "conv1",
    "encoder.1.reparam_conv": "conv2",
    "encoder.2.reparam_conv": "conv3",
    "encoder.3.reparam_conv": "conv4",
    "decoder.rnn": "lstm_cell",
    "decoder.decoder.2": "final_conv",
}


class SpeechPresence(Reward):
    """The mean probability of speech, in [0, 1]. Differentiable in the waves.

    A sound is mixed down to mono, brought to 16 kHz and cut into chunks of 32 ms, the last of them
    filled up with silence; the detector hears them in order, from a fresh state. Half of pauses
    halves the score, so speech without pauses is best. The words may make no sense.

    Args:
        weights: ``silero_vad_16k.safetensors`` or ``silero_vad.jit``, as found in the folder
            ``src/silero_vad/data`` of the repository snakers4/silero-vad and in the package
            silero-vad; read by the first call. The two have held different weights of one network.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: by the first call, if the file holds another network.
    """

    def __init__(self, weights: str) -> None:
        path = Path(weights).expanduser().absolute()
        if not path.is_file():
            raise FileNotFoundError(
                f"there are no weights at {path}; download src/silero_vad/data/"
                "silero_vad_16k.safetensors from github.com/snakers4/silero-vad"
            )
        self.weights = str(path)
        self._network: _Network | None = None

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return self.probabilities(samples).mean(1)

    def probabilities(self, samples: Samples) -> Tensor:
        """The probability of speech in every chunk of 32 ms, (B, N) float32: when it is heard."""
        waves = mono(samples, _RATE)
        if self._network is None:
            self._network = load_once(_Network, self.weights, _load)
        network = self._network.to(waves.device)
        with torch.autocast(waves.device.type, enabled=False):
            probabilities: Tensor = network(waves)
        return probabilities

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the network by itself when first called.
        return {**self.__dict__, "_network": None}


class _Network(nn.Module):
    """The detector at 16 kHz, with the names of silero_vad_16k.safetensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        # Not LSTM: cuDNN's gives no gradient in evaluation mode.
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, waves: Tensor) -> Tensor:
        """Probabilities of the chunks, (B, T) -> (B, N)."""
        inputs = self._encode(_chunks(waves))
        state = waves.new_zeros(2, len(waves), 128).unbind()
        heard = []
        for step in inputs.unbind(1):
            state = self.lstm_cell(step, state)
            heard.append(state[0])
        logits: Tensor = self.final_conv(torch.stack(heard, 2).relu())
        return logits.squeeze(1).sigmoid()

    def _encode(self, chunks: Tensor) -> Tensor:
        """One vector for each chunk by itself, (B, N, 576) -> (B, N, 128)."""
        padded = F.pad(chunks.flatten(0, 1), (0, 64), mode="reflect")
        parts = self.stft_conv(padded[:, None]).unflatten(1, (2, 129))
        # The norm, unlike a root of squares, has a gradient in silence: zero.
        x = torch.linalg.vector_norm(parts, dim=1)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        vectors: Tensor = x.squeeze(2).unflatten(0, chunks.shape[:2])
        return vectors


def _chunks(waves: Tensor) -> Tensor:
    """(B, T) -> (B, N, 576): 64 samples of context, then 512, silence around the sound."""
    missing = -waves.shape[1] % _CHUNK
    return F.pad(waves, (_CONTEXT, missing)).unfold(1, _CONTEXT + _CHUNK, _CHUNK)


def _load(file: str) -> _Network:
    """Raises ValueError if the file holds another network."""
    if file.endswith(".safetensors"):
        from safetensors.torch import load_file

        state = load_file(file)
    else:
        state = _renamed(torch.jit.load(file, map_location="cpu").state_dict())
    network = _Network()
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{file} is not Silero's detector at 16 kHz: {error}") from None
    return network


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights for 16 kHz of silero_vad.jit, which also holds a network for 8 kHz."""
    renamed = {}
    for name, weight in state.items():
        for theirs, ours in _LAYERS.items():
            if name.startswith(f"_model.{theirs}"):
                renamed[ours + name.removeprefix(f"_model.{theirs}")] = weight
    return renamed
