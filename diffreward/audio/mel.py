"""Mel spectrograms as pretrained networks were trained on them, differentiable in the waves.

Source: CLAP (Wu et al., 2023, arXiv:2211.06687) and PANNs (Kong et al., 2020, arXiv:1912.10211)
share `mel_decibels`; VGGish (Hershey et al., 2017, arXiv:1609.09430) has `vggish_patches`, with the
numbers of its published code (tensorflow/models, research/audioset/vggish).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

VGGISH_RATE = 16_000
_WINDOW, _HOP, _FFT = 400, 160, 512
_FRAMES, _BANDS = 96, 64
VGGISH_PATCH = (_FRAMES - 1) * _HOP + _WINDOW
"""Samples that one patch of VGGish needs: 0.975 s, of which patches share 0.015 s."""


def mel_decibels(waves: Tensor, filters: Tensor, hop: int) -> Tensor:
    """The power in mel bands, (N, 1 + T // hop, M), in dB, at least -100.

    Spectra of Hann windows, centred on every hop-th sample; the waves are reflected at both ends.
    The gradient is zero where a band is at its floor, as in digital silence.

    Args:
        waves: (N, T) in [-1, 1], T more than half a window.
        filters: (F, M), weights of the F = n_fft / 2 + 1 frequencies in the bands.
        hop: samples from one spectrum to the next.
    """
    n_fft = 2 * (len(filters) - 1)
    window = torch.hann_window(n_fft, dtype=waves.dtype, device=waves.device)
    spectrum = torch.stft(waves, n_fft, hop, window=window, center=True, return_complex=True)
    power = torch.view_as_real(spectrum).square().sum(-1)
    return 10 * (power.mT @ filters.to(power)).clamp(min=1e-10).log10()


def vggish_patches(waves: Tensor) -> Tensor:
    """What VGGish sees, (N, P, 96, 64): the logarithm of the amplitudes in P parts of 0.96 s.

    Sounds that are too short for one part are silent at the end; what remains after the last whole
    part is left out.

    Args:
        waves: (N, T) in [-1, 1], at 16 kHz.
    """
    waves = F.pad(waves, (0, max(VGGISH_PATCH - waves.shape[1], 0)))
    window = torch.hann_window(_WINDOW, dtype=waves.dtype, device=waves.device)
    frames = waves.unfold(1, _WINDOW, _HOP) * window
    amplitudes = torch.fft.rfft(frames, _FFT).abs()
    levels = (amplitudes @ _vggish_filters().to(amplitudes) + 0.01).log()
    patches: Tensor = levels.unfold(1, _FRAMES, _FRAMES).mT
    return patches


def _vggish_filters() -> Tensor:
    """(257, 64), float64: triangles on the mel scale, from 125 to 7500 Hz."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        _FFT // 2 + 1,
        _BANDS,
        125.0,
        7500.0,
        VGGISH_RATE,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    return torch.from_numpy(filters)
