"""DNSMOS P.835: how a listener would rate a recording of speech, its voice, its background or both.

Source: Reddy, Gopal and Cutler (2022), ICASSP, arXiv:2110.01763, with the windows and polynomials
of `DNSMOS/dnsmos_local.py` in the repository microsoft/DNS-Challenge. The published network is
evaluated by onnxruntime, which gives no gradients. It is small, so it is written out here in torch
and takes its numbers from the published file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffreward.audio.resampling import mono
from diffreward.backbones import load_once
from diffreward.reward import Reward
from diffreward.samples import Samples

_RATE = 16_000
# 9.01 s: 900 steps of the spectrogram, 10 ms each, and half of its last frame.
_WINDOW = 144_160

# The row of the network's output, and the polynomial (of degrees 2, 1, 0) that maps it to a mean
# opinion score, of each head.
_HEADS = {
    "SIG": (0, (-0.08397278, 1.22083953, 0.0052439)),
    "BAK": (1, (-0.13166888, 1.60915514, -0.39604546)),
    "OVRL": (2, (-0.06766283, 1.11546468, 0.04602535)),
}
# What the published graph computes, without what only moves numbers about.
_SPECTROGRAM = ["Conv", "Conv", "Mul", "Mul", "Add", "Sqrt", "Pow", "Max", "Log", "Div"]
_CONVOLUTIONS = ["Conv", "Relu"] * 4 + ["MaxPool", "Conv", "Relu"] * 3 + ["ReduceMax"]
_DENSE = ["MatMul", "Add", "Relu"] * 2 + ["MatMul", "Add"]
_MOVES = {"Slice", "Reshape", "Concat", "Transpose", "Unsqueeze"}

# The gradient of one window takes 0.3 GB: no more windows than this are evaluated together.
_TOGETHER = 4


class DNSMOS(Reward):
    """The mean opinion score of noisy speech, about 1 (bad) to 5. Differentiable in the waves.

    Clean recordings of speech reach 3 to 4: a perfect 5 of the network becomes 3.9 (OVRL), 4.0
    (SIG) or 4.4 (BAK). A sound is mixed down to mono and brought to 16 kHz; one below 9.01 s is
    repeated, a longer one is the mean over windows that begin one second apart, which may leave the
    last two seconds unrated. Made to compare noise suppressors on speech, not to say whether there
    is speech: what is said, and music, are beyond it.

    The gradient is computed with the activations of 4 windows at a time, whatever the batch.

    Args:
        model: the file ``DNSMOS/DNSMOS/sig_bak_ovr.onnx`` of the repository
            microsoft/DNS-Challenge, read by the first call. (The file of that name under
            ``pDNSMOS``, for one wanted speaker, looks the same but needs other polynomials.)
        head: ``"OVRL"`` overall, ``"SIG"`` the quality of the voice, or ``"BAK"`` how little the
            background intrudes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is no such head; by the first call, if the file holds another network.
        ImportError: by the first call, if the package onnx is missing.
    """

    def __init__(self, model: str, head: Literal["OVRL", "SIG", "BAK"] = "OVRL") -> None:
        if head not in _HEADS:
            raise ValueError(f"head is one of {sorted(_HEADS)}, got {head!r}")
        path = Path(model).expanduser().absolute()
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no model at {path}; download DNSMOS/DNSMOS/sig_bak_ovr.onnx from "
                "github.com/microsoft/DNS-Challenge"
            )
        self.model = str(path)
        self.head = head
        self._network: _Network | None = None

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        waves = mono(samples, _RATE)
        if self._network is None:
            self._network = load_once(_Network, self.model, lambda file: _Network(_read(file)))
        network = self._network.to(waves.device)
        windows = _windows(waves)
        row, (square, slope, offset) = _HEADS[self.head]
        with torch.autocast(waves.device.type, enabled=False):
            # The network draws nothing: there is no random state to go back to.
            ratings = [
                checkpoint(network, some, use_reentrant=False, preserve_rng_state=False)
                for some in windows.flatten(0, 1).split(_TOGETHER)
            ]
        raw = torch.cat(ratings)[:, row].reshape(windows.shape[:2])
        return (square * raw**2 + slope * raw + offset).mean(1)

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the network by itself when first called.
        return {**self.__dict__, "_network": None}


def _windows(waves: Tensor) -> Tensor:
    """The windows that are rated, (B, T) -> (B, W, 144160).

    A short sound is doubled until it is long enough. A longer one has a window for each whole
    second above nine, and one at least: of 10.5 s only the first 9.01 s count. So it is in the
    official script, which however loses those that begin at 7 to 23 s or 119 to 122 s: rounding
    makes them a sample too short for it. That would leave most of a long sound unrated.
    """
    length = waves.shape[1]
    copies = 1
    while length * copies < _WINDOW:
        copies *= 2
    count = max(1, length * copies // _RATE - 9)
    end = (count - 1) * _RATE + _WINDOW
    return waves.repeat(1, copies)[:, :end].unfold(1, _WINDOW, _RATE)


class _Network(nn.Module):
    """Log-power spectrogram, seven convolutions, three dense layers; sizes as in the file."""

    basis: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        stft = [weights[f"time2freq/stft-{part}/kernel:0"][..., 0] for part in ("real", "imag")]
        # Both parts as one matrix, (320, 2 x 161); the window of the frames is in it.
        self.register_buffer("basis", torch.cat(stft).T.contiguous())
        names = ["conv2d", *(f"conv2d_{i}" for i in range(1, 7))]
        layers: list[nn.Module] = []
        for i, name in enumerate(names):
            layers += [_conv(weights[f"{name}/kernel:0"], weights[f"{name}/bias:0"]), nn.ReLU()]
            if i in (3, 4, 5):
                layers.append(nn.MaxPool2d(2))
        self.convolutions = nn.Sequential(*layers)
        stem = "mos_estimator_logpow/{}/{}/ReadVariableOp/resource:0"
        first, second, last = (
            _dense(weights[stem.format(name, "MatMul")], weights[stem.format(name, "BiasAdd")])
            for name in ("dense", "dense_1", "dense_3")
        )
        self.dense = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)

    def forward(self, waves: Tensor) -> Tensor:
        """Of waves (N, T), the ratings of voice, background and both, (N, 3), unscaled."""
        frames = waves.unfold(1, 320, 160)
        real, imaginary = (frames @ self.basis).chunk(2, dim=-1)
        # The floor also keeps the logarithm and its gradient finite in silence.
        power = (real**2 + imaginary**2).clamp(min=1e-12)
        maps = self.convolutions(power.log10()[:, None])
        ratings: Tensor = self.dense(maps.amax((2, 3)))
        return ratings


def _conv(kernel: Tensor, bias: Tensor) -> nn.Conv2d:
    layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
    layer.weight, layer.bias = nn.Parameter(kernel), nn.Parameter(bias)
    return layer


def _dense(matrix: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(*matrix.shape)
    layer.weight, layer.bias = nn.Parameter(matrix.T.contiguous()), nn.Parameter(bias)
    return layer


def _read(file: str) -> dict[str, Tensor]:
    """The weights of the published file by their names in it.

    Raises:
        ImportError: if the package onnx is missing.
        ValueError: if the graph of the file is another.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "DNSMOS reads its weights with the package onnx: pip install 'diffreward[audio]'"
        ) from error
    graph = onnx.load(file).graph
    steps = [node.op_type for node in graph.node if node.op_type not in _MOVES]
    if steps != _SPECTROGRAM + _CONVOLUTIONS + _DENSE:
        raise ValueError(
            f"{file} is not sig_bak_ovr.onnx of DNSMOS P.835: it computes {' '.join(steps)}, not "
            f"{' '.join(_SPECTROGRAM + _CONVOLUTIONS + _DENSE)}"
        )
    return {
        weight.name: torch.from_numpy(onnx.numpy_helper.to_array(weight).copy())
        for weight in graph.initializer
    }
