"""A second judge of whether there is a face in an image, to see whether a first one was deceived.

Source: the detector RFB-320 of the repository Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB,
an SSD, Liu et al. (2016), arXiv:1512.02325, with a receptive-field block, Liu et al. (2018),
arXiv:1711.07767. It shares neither weights nor design with `diffreward.rewards.FacePresence`: an
image that was changed until that one sees a face need not have one for this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreward.backbones import load_once
from diffreward.preprocessing import quantise
from diffreward.reward import Reward
from diffreward.samples import Samples, images

_SIZE = (240, 320)


class UltraLightFacePresence(Reward):
    """The log-probability of the likeliest face, in nats, at most 0. Differentiable.

    The image is brought to 320 x 240 pixels, and faces of 10 pixels there and more are seen.

    Args:
        weights: the file ``version-RFB-320.pth`` of the repository (1.2 MB); loaded by the first
            call, onto the device of the pixels.

    Raises:
        FileNotFoundError: if there is no such file.
    """

    def __init__(self, weights: str) -> None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"there are no weights at {path.absolute()}; download version-RFB-320.pth from "
                "github.com/Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB"
            )
        self.weights = str(path.absolute())
        self._network: _Detector | None = None

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        pixels = images(samples)
        if self._network is None:
            self._network = load_once(_Detector, self.weights, _load)
        # Of the levels of an 8-bit image OpenCV makes the levels of another one.
        resized = F.interpolate(quantise(pixels), _SIZE, mode="bilinear")
        levels = quantise(resized / 255)
        log_odds: Tensor = self._network.to(pixels.device)((levels - 127) / 128)
        return F.logsigmoid(log_odds.amax(1))

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the network by itself when first called.
        return {**self.__dict__, "_network": None}


class _Detector(nn.Module):
    """Images to the log-odds of a face at N places, (B, N), with the official names of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.base_net = nn.Sequential(
            nn.Sequential(*_convolution(3, 16, 3, stride=2)),
            _separable(16, 32),
            _separable(32, 32, stride=2),
            _separable(32, 32),
            _separable(32, 64, stride=2),
            _separable(64, 64),
            _separable(64, 64),
            _ReceptiveFields(64),
            _separable(64, 128, stride=2),
            _separable(128, 128),
            _separable(128, 128),
            _separable(128, 256, stride=2),
            _separable(256, 256),
        )
        extra = [nn.Conv2d(256, 64, 1), nn.ReLU(), _head(64, 256, stride=2), nn.ReLU()]
        self.extras = nn.ModuleList([nn.Sequential(*extra)])
        # Two numbers for each of the two or three sizes of faces at a place.
        heads = [_head(64, 6), _head(128, 4), _head(256, 4), nn.Conv2d(256, 6, 3, padding=1)]
        self.classification_headers = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> Tensor:
        # The coarser a map, the larger the faces that are looked for in it.
        parts = (self.base_net[:8], self.base_net[8:11], self.base_net[11:], self.extras[0])
        found = []
        for part, head in zip(parts, self.classification_headers, strict=True):
            x = part(x)
            found.append(head(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 2)))
        no_face, face = torch.cat(found, 1).unbind(2)
        return face - no_face


class _ReceptiveFields(nn.Module):
    """Dilated convolutions beside each other, which see near and far."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow, wide = width // 8, width // 4
        self.branch0 = nn.Sequential(
            _Named(width, narrow, 1, relu=False),
            _Named(narrow, wide, 3),
            _Named(wide, wide, 3, dilation=2, relu=False),
        )
        self.branch1 = nn.Sequential(
            _Named(width, narrow, 1, relu=False),
            _Named(narrow, wide, 3),
            _Named(wide, wide, 3, dilation=3, relu=False),
        )
        self.branch2 = nn.Sequential(
            _Named(width, narrow, 1, relu=False),
            _Named(narrow, narrow // 2 * 3, 3),
            _Named(narrow // 2 * 3, wide, 3),
            _Named(wide, wide, 3, dilation=5, relu=False),
        )
        self.ConvLinear = _Named(3 * wide, width, 1, relu=False)
        self.shortcut = _Named(width, width, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.cat([self.branch0(x), self.branch1(x), self.branch2(x)], 1)
        return F.relu(self.ConvLinear(branches) + self.shortcut(x))


class _Named(nn.Module):
    """A normalised convolution, as the receptive-field block names its parts."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, dilation: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)
        self.activation = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.activation(self.bn(self.conv(x)))
        return found


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    padding = kernel // 2
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]


def _separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    each = _convolution(inputs, inputs, 3, stride, groups=inputs)
    return nn.Sequential(*each, *_convolution(inputs, outputs, 1))


def _head(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    each = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs)
    return nn.Sequential(each, nn.ReLU(), nn.Conv2d(inputs, outputs, 1))


def _load(weights: str) -> _Detector:
    network = _Detector()
    state = torch.load(weights, map_location="cpu", weights_only=True)
    # Where the faces are does not matter here.
    kept = {k: v for k, v in state.items() if not k.startswith("regression_headers.")}
    network.load_state_dict(kept)
    return network
