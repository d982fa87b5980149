"""The embedding of FID: 2048 features of a network that was trained to name what is in images.

Source: Heusel et al. (2017), NeurIPS, arXiv:1706.08500; the network is the third Inception of
Szegedy et al. (2016), CVPR, arXiv:1512.00567. FID is defined by one set of weights, of December
2015, and by the oddities of the graph that they came in: average pools leave out the padding, the
last block pools by the maximum, and grey is 128. Images are resized as Heusel did or, by default,
as Parmar et al. (2022), CVPR, arXiv:2104.11222 (clean-fid), do, which avoids aliasing. Distances
that were measured with one of these cannot be compared with those of the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreward.backbones import load_once
from diffreward.embedding import Embedding
from diffreward.preprocessing import quantise
from diffreward.samples import Samples, images

_SIDE = 299


class InceptionEmbedding(Embedding):
    """One row of 2048 features, at least 0, per image. Differentiable in the pixels.

    Pixels are rounded to the levels of 8-bit files, of which FID is measured. The network, of 22
    million parameters, is loaded by the first call, in float32, onto the device of the pixels.

    Args:
        weights: the file ``pt_inception-2015-12-05-6726825d.pth``, a release of
            github.com/mseitzer/pytorch-fid, or the one of torch-fidelity, which holds the same.
        resize: ``clean`` (clean-fid) or ``tf`` (TensorFlow 1: the first code of FID, and
            torch-fidelity).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is no such resizing.
    """

    def __init__(self, weights: str, resize: str = "clean") -> None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"there are no weights at {path.absolute()}; download "
                "pt_inception-2015-12-05-6726825d.pth from the releases of "
                "github.com/mseitzer/pytorch-fid"
            )
        if resize not in _RESIZES:
            raise ValueError(f"resize is one of {list(_RESIZES)}, got {resize!r}")
        self.weights = str(path.absolute())
        self.resize = resize
        self._network: _Inception | None = None

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B images to (B, 1, 2048), float32."""
        pixels = images(samples)
        if self._network is None:
            self._network = load_once(_Inception, self.weights, _load)
        levels = _RESIZES[self.resize](quantise(pixels))
        rows: Tensor = self._network.to(pixels.device)((levels - 128) / 128)
        return rows[:, None].float()

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the network by itself when first called.
        return {**self.__dict__, "_network": None}


def _clean(levels: Tensor) -> Tensor:
    """As PIL resizes images of floating-point numbers, which it does not round."""
    size = (_SIDE, _SIDE)
    return F.interpolate(levels, size, mode="bicubic", antialias=True).clamp(0, 255)


def _tensorflow(levels: Tensor) -> Tensor:
    """Between the two neighbours of a place, with places counted from the corners of pixels."""
    rows, columns = (_between_neighbours(n).to(levels) for n in levels.shape[2:])
    return rows @ levels @ columns.T


def _between_neighbours(n: int) -> Tensor:
    """(299, n): what each of n pixels contributes to each of 299."""
    places = (torch.arange(_SIDE, dtype=torch.float64) * (n / _SIDE)).clamp(max=n - 1)
    return (1 - (places[:, None] - torch.arange(n)).abs()).clamp(min=0)


_RESIZES: dict[str, Callable[[Tensor], Tensor]] = {"clean": _clean, "tf": _tensorflow}


class _Inception(nn.Sequential):
    """(B, 3, 299, 299) in [-1, 1] to (B, 2048), with the official names of the layers."""

    def __init__(self) -> None:
        layers: dict[str, nn.Module] = {
            "Conv2d_1a_3x3": _Convolution(3, 32, (3, 3), stride=2),
            "Conv2d_2a_3x3": _Convolution(32, 32, (3, 3)),
            "Conv2d_2b_3x3": _Convolution(32, 64, (3, 3), padding=(1, 1)),
            "pool_1": nn.MaxPool2d(3, 2),
            "Conv2d_3b_1x1": _Convolution(64, 80, (1, 1)),
            "Conv2d_4a_3x3": _Convolution(80, 192, (3, 3)),
            "pool_2": nn.MaxPool2d(3, 2),
            "Mixed_5b": _Mixed(192, _A, _mean, pooled=32),
            "Mixed_5c": _Mixed(256, _A, _mean, pooled=64),
            "Mixed_5d": _Mixed(288, _A, _mean, pooled=64),
            "Mixed_6a": _Mixed(288, _B, _halve),
            "Mixed_6b": _Mixed(768, _c(128), _mean, pooled=192),
            "Mixed_6c": _Mixed(768, _c(160), _mean, pooled=192),
            "Mixed_6d": _Mixed(768, _c(160), _mean, pooled=192),
            "Mixed_6e": _Mixed(768, _c(192), _mean, pooled=192),
            "Mixed_7a": _Mixed(768, _D, _halve),
            "Mixed_7b": _Mixed(1280, _E, _mean, pooled=192),
            "Mixed_7c": _Mixed(2048, _E, _maximum, pooled=192),
        }
        super().__init__(OrderedDict(layers))

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels
        for layer in self:
            x = layer(x)
        return x.mean((2, 3))


_mean = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_maximum = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
_halve = partial(F.max_pool2d, kernel_size=3, stride=2)

# A line per chain of convolutions, a comma between those after, a bar between those beside each
# other; of each its name, its channels, and height and width of its kernel.
_A = (
    "branch1x1 64 1x1",
    "branch5x5_1 48 1x1, branch5x5_2 64 5x5",
    "branch3x3dbl_1 64 1x1, branch3x3dbl_2 96 3x3, branch3x3dbl_3 96 3x3",
)
_B = (
    "branch3x3 384 3x3",
    "branch3x3dbl_1 64 1x1, branch3x3dbl_2 96 3x3, branch3x3dbl_3 96 3x3",
)
_D = (
    "branch3x3_1 192 1x1, branch3x3_2 320 3x3",
    "branch7x7x3_1 192 1x1, branch7x7x3_2 192 1x7, branch7x7x3_3 192 7x1, branch7x7x3_4 192 3x3",
)
_E = (
    "branch1x1 320 1x1",
    "branch3x3_1 384 1x1, branch3x3_2a 384 1x3 | branch3x3_2b 384 3x1",
    "branch3x3dbl_1 448 1x1, branch3x3dbl_2 384 3x3, "
    "branch3x3dbl_3a 384 1x3 | branch3x3dbl_3b 384 3x1",
)


def _c(inner: int) -> tuple[str, ...]:
    return (
        "branch1x1 192 1x1",
        f"branch7x7_1 {inner} 1x1, branch7x7_2 {inner} 1x7, branch7x7_3 192 7x1",
        f"branch7x7dbl_1 {inner} 1x1, branch7x7dbl_2 {inner} 7x1, branch7x7dbl_3 {inner} 1x7, "
        f"branch7x7dbl_4 {inner} 7x1, branch7x7dbl_5 192 1x7",
    )


class _Mixed(nn.ModuleDict):
    """Chains of convolutions beside each other, and a pool.

    Args:
        inputs: channels.
        chains: as above.
        pool: beside them.
        pooled: channels to which a convolution after the pool brings those of the input. Without
            one, the block halves height and width, by the pool and by the last layer of each chain.
    """

    def __init__(
        self,
        inputs: int,
        chains: Sequence[str],
        pool: Callable[[Tensor], Tensor],
        pooled: int | None = None,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.chains = [_read(chain) for chain in chains]
        for chain in self.chains:
            channels = inputs
            for step in chain:
                halves = pooled is None and step is chain[-1]
                for name, outputs, (height, width) in step:
                    shape = (2, (0, 0)) if halves else (1, (height // 2, width // 2))
                    self[name] = _Convolution(channels, outputs, (height, width), *shape)
                channels = sum(outputs for _, outputs, _ in step)
        if pooled is not None:
            self["branch_pool"] = _Convolution(inputs, pooled, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        branches = []
        for chain in self.chains:
            branch = x
            for step in chain:
                branch = torch.cat([self[name](branch) for name, _, _ in step], 1)
            branches.append(branch)
        branch = self.pool(x)
        branches.append(self["branch_pool"](branch) if "branch_pool" in self else branch)
        return torch.cat(branches, 1)


class _Convolution(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _read(chain: str) -> list[list[tuple[str, int, tuple[int, int]]]]:
    """The steps of a line above: name, channels and kernel of their layers."""
    found = []
    for step in chain.split(","):
        layers = [layer.split() for layer in step.split("|")]
        kernels = [kernel.split("x") for _, _, kernel in layers]
        sizes = [(int(height), int(width)) for height, width in kernels]
        found.append([(n, int(c), k) for (n, c, _), k in zip(layers, sizes, strict=True)])
    return found


def _load(weights: str) -> _Inception:
    """The network with the weights of a file.

    Raises:
        ValueError: if the file is of another network.
    """
    state: Mapping[str, Tensor] = torch.load(weights, map_location="cpu", weights_only=True)
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    # Parameters without memory: those of the file take their place.
    with torch.device("meta"):
        network = _Inception()
    # Counts of training steps are in some copies of the file, not in others, and say nothing here.
    counts = [name for name in network.state_dict() if name.endswith("num_batches_tracked")]
    try:
        network.load_state_dict({**dict.fromkeys(counts, torch.tensor(0)), **kept}, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{weights} is not of the Inception of FID: {error}") from error
    return network
