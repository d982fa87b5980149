"""How sure a cascade of small networks is that there is a face in an image.

Source: MTCNN, Zhang et al. (2016), IEEE Signal Processing Letters 23:1499, arXiv:1604.02878, with
the weights, sizes and resizing of the repository timesler/facenet-pytorch. The first network looks
at a pyramid of the image and proposes boxes, which the second and the third look at more closely;
each also moves the box. Where MTCNN drops boxes below thresholds, all proposals are followed to
the end here, so that an image without a face has a score and a gradient too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreward.backbones import load_once
from diffreward.preprocessing import quantise
from diffreward.reward import Reward
from diffreward.samples import Samples, images

# Of the paper's pyramid: the network sees 12 pixels, a step of the pyramid shrinks by this factor.
_CELL, _STRIDE, _SHRINK = 12, 2, 0.709
# Of two proposals that overlap by more than this share of their union, only the likelier is kept.
_OVERLAP = 0.5


class FacePresence(Reward):
    """The log-probability that there is a face, in nats, at most 0. Differentiable in the pixels.

    It is log p + log r + log o of the three networks, at the place where the sum is the largest:
    above -0.1 where there is a face, mostly -2 to -12 where there is none. The gradient flows
    through what the networks see in the boxes, not through where the boxes are.

    Drawings and statues count as much as people do, and one face as much as ten. A few levels of
    each pixel suffice to make the networks see a face in a landscape: judge images that were made
    by its gradient with another detector, such as `UltraLightFacePresence`.

    Args:
        weights: a folder with ``pnet.pt``, ``rnet.pt`` and ``onet.pt`` of facenet-pytorch (2 MB, in
            its package; a prefix such as ``mtcnn_`` may stand before the names). Loaded by the
            first call, onto the device of the pixels.
        smallest: side of the smallest face that is looked for, in pixels.
        candidates: proposals per image that are followed.

    Raises:
        FileNotFoundError: if the folder does not hold the three files, once each.
        ValueError: if a number is below 1.
    """

    def __init__(self, weights: str, smallest: int = 20, candidates: int = 16) -> None:
        if smallest < 1 or candidates < 1:
            raise ValueError(
                f"got smallest {smallest} and candidates {candidates}; both are at least 1"
            )
        _files(weights)
        self.weights = str(Path(weights).expanduser().absolute())
        self.smallest = smallest
        self.candidates = candidates
        self._networks: _Cascade | None = None

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B images to log-probabilities, (B,).

        Raises:
            ValueError: if the images are smaller than the smallest face.
        """
        pixels = images(samples)
        if min(pixels.shape[2:]) < self.smallest:
            size = tuple(pixels.shape[2:])
            raise ValueError(f"faces are {self.smallest} pixels or more, the images have {size}")
        if self._networks is None:
            self._networks = load_once(_Cascade, self.weights, _load)
        networks, levels = self._networks.to(pixels.device), quantise(pixels)
        margins, boxes = _pyramid(networks.first, levels, self.smallest)
        chosen = _best(margins.detach(), boxes, self.candidates)
        rows = torch.arange(len(levels), device=levels.device)[:, None]
        found, boxes = F.logsigmoid(margins[rows, chosen]), boxes[rows, chosen]
        for network, side in ((networks.second, 24), (networks.third, 48)):
            margin, moves = network(_normalise(_crops(levels, _square(boxes), side)))
            found = found + F.logsigmoid(margin.reshape(found.shape))
            boxes = _moved(_square(boxes), moves.detach().reshape(boxes.shape), 1)
        return found.amax(1)

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the networks by itself when first called.
        return {**self.__dict__, "_networks": None}


def _pyramid(network: nn.Module, levels: Tensor, smallest: int) -> tuple[Tensor, Tensor]:
    """All that the first network says of B images.

    Returns:
        (B, N) log-odds, and (B, N, 4) boxes without gradient: left, top, right, bottom in pixels.
    """
    height, width = levels.shape[2:]
    scale, margins, boxes = _CELL / smallest, [], []
    while min(height, width) * scale >= _CELL:
        size = (int(height * scale + 1), int(width * scale + 1))
        margin, moves = network(_normalise(F.interpolate(levels, size, mode="area")))
        rows, columns = (torch.arange(n, device=levels.device) for n in margin.shape[1:])
        corner = _STRIDE * torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1) + 1
        cells = torch.cat([corner / scale, (corner + _CELL - 1) / scale], -1).floor().flatten(0, 1)
        boxes.append(_moved(cells, moves.detach().flatten(2).mT, 0))
        margins.append(margin.flatten(1))
        scale *= _SHRINK
    return torch.cat(margins, 1), torch.cat(boxes, 1)


def _best(margins: Tensor, boxes: Tensor, number: int) -> Tensor:
    """Which of the proposals to follow, (B, number): the likeliest that do not overlap much."""
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    rows, chosen = torch.arange(len(boxes), device=boxes.device), []
    for _ in range(min(number, margins.shape[1])):
        best = margins.argmax(1)
        chosen.append(best)
        box = boxes[rows, best][:, None]
        shared = torch.minimum(box[..., 2:], boxes[..., 2:]) - torch.maximum(
            box[..., :2], boxes[..., :2]
        )
        overlap = shared.clamp(min=0).prod(-1)
        union = area + area[rows, best][:, None] - overlap
        margins = margins.masked_fill(overlap > _OVERLAP * union, -torch.inf)
        margins[rows, best] = -torch.inf
    return torch.stack(chosen, 1)


def _moved(boxes: Tensor, moves: Tensor, margin: int) -> Tensor:
    """Boxes whose corners are moved by shares of their width and height, plus a margin."""
    sides = boxes[..., 2:] - boxes[..., :2] + margin
    return boxes + moves * torch.cat([sides, sides], -1)


def _square(boxes: Tensor) -> Tensor:
    """Boxes made as high as they are wide around their centres, by the longer side."""
    sides = boxes[..., 2:] - boxes[..., :2]
    longer = sides.amax(-1, keepdim=True)
    corner = boxes[..., :2] + (sides - longer) / 2
    return torch.cat([corner, corner + longer], -1)


def _crops(levels: Tensor, boxes: Tensor, side: int) -> Tensor:
    """What is in the boxes, (B, K, 4), of B images, cut at the edges: (B K, 3, side, side)."""
    height, width = levels.shape[2:]
    crops = []
    for image, corners in zip(levels, boxes.long().tolist(), strict=True):
        for left, top, right, bottom in corners:
            # Corners count from 1, and belong to the box.
            x, y = (min(max(a - 1, 0), n - 1) for a, n in ((left, width), (top, height)))
            inside = image[:, y : max(bottom, y + 1), x : max(right, x + 1)]
            crops.append(F.interpolate(inside[None], (side, side), mode="area"))
    return torch.cat(crops)


def _normalise(levels: Tensor) -> Tensor:
    return (levels - 127.5) / 128


_NamedLayer = tuple[str, nn.Module]


class _Network(nn.ModuleDict):
    """Images to the log-odds of a face and to the moves of its box's corners, (N, 4, ...).

    Args:
        trunk: layers one after the other.
        face: the layer after them that tells faces, and its name.
        box: the layer beside it that moves the box, and its name.
    """

    def __init__(
        self,
        trunk: Mapping[str, nn.Module],
        face: _NamedLayer,
        box: _NamedLayer,
    ) -> None:
        super().__init__({**trunk, **dict([face, box])})
        self.trunk, self.heads = tuple(trunk), (face[0], box[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for name in self.trunk:
            x = self[name](x)
        face, box = (self[name](x) for name in self.heads)
        return face[:, 1] - face[:, 0], box


class _Flat(nn.Module):
    """(N, C, H, W) to (N, W H C), the order of the first implementation."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 2, 1).flatten(1)


class _Cascade(nn.Module):
    """The three networks, with the official names of their layers."""

    def __init__(self) -> None:
        super().__init__()
        trunk = {**_convolution(1, 3, 10), "pool1": _pool(2), **_convolution(2, 10, 16)}
        trunk |= _convolution(3, 16, 32)
        face: _NamedLayer = ("conv4_1", nn.Conv2d(32, 2, 1))
        box: _NamedLayer = ("conv4_2", nn.Conv2d(32, 4, 1))
        self.first = _Network(trunk, face, box)

        trunk = {**_convolution(1, 3, 28), "pool1": _pool(3)}
        trunk |= {**_convolution(2, 28, 48), "pool2": _pool(3)}
        trunk |= {**_convolution(3, 48, 64, kernel=2), "flat": _Flat(), **_dense(4, 576, 128)}
        face, box = ("dense5_1", nn.Linear(128, 2)), ("dense5_2", nn.Linear(128, 4))
        self.second = _Network(trunk, face, box)

        trunk = {**_convolution(1, 3, 32), "pool1": _pool(3)}
        trunk |= {**_convolution(2, 32, 64), "pool2": _pool(3)}
        trunk |= {**_convolution(3, 64, 64), "pool3": _pool(2)}
        trunk |= {**_convolution(4, 64, 128, kernel=2), "flat": _Flat(), **_dense(5, 1152, 256)}
        face, box = ("dense6_1", nn.Linear(256, 2)), ("dense6_2", nn.Linear(256, 4))
        self.third = _Network(trunk, face, box)


def _convolution(place: int, inputs: int, outputs: int, kernel: int = 3) -> dict[str, nn.Module]:
    layer = nn.Conv2d(inputs, outputs, kernel)
    return {f"conv{place}": layer, f"prelu{place}": nn.PReLU(outputs)}


def _dense(place: int, inputs: int, outputs: int) -> dict[str, nn.Module]:
    return {f"dense{place}": nn.Linear(inputs, outputs), f"prelu{place}": nn.PReLU(outputs)}


def _pool(size: int) -> nn.Module:
    return nn.MaxPool2d(size, 2, ceil_mode=True)


def _files(weights: str) -> list[Path]:
    """Of the three networks, in their order."""
    folder, files = Path(weights).expanduser(), []
    for name in ("pnet.pt", "rnet.pt", "onet.pt"):
        found = sorted(folder.glob(f"*{name}"))
        if len(found) != 1:
            raise FileNotFoundError(
                f"the folder {folder.absolute()} holds {len(found)} files *{name}, expected one; "
                "they are in the folder data of the package facenet-pytorch"
            )
        files += found
    return files


def _load(weights: str) -> _Cascade:
    networks = _Cascade()
    parts = (networks.first, networks.second, networks.third)
    for network, file in zip(parts, _files(weights), strict=True):
        state = torch.load(file, map_location="cpu", weights_only=True)
        # Where eyes, nose and mouth are does not matter here.
        kept = {k: v for k, v in state.items() if not k.startswith("dense6_3.")}
        network.load_state_dict(kept)
    return networks
