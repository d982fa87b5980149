"""The squared Frechet distance of a set of rows to a Gaussian, through the nuclear norm.

Source: Dowson and Landau (1982), J. Multivariate Anal. 12, 450-455: that between N(m, C) and
N(m_r, C_r) is |m - m_r|^2 + tr C + tr C_r - 2 tr (C C_r)^(1/2). With the centred rows A, for which
C = A^T A, and a root L of the reference, C_r = L L^T, the last trace is the sum of the singular
values of A L. This needs neither a product of two covariances nor the square root of a matrix, so
that it is as exact with fewer rows than features, where other ways lose digits or the gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diffreward.moments import Moments, existing

# Relative to the largest. Below, directions of singular vectors are rounding.
_SMALLEST_SINGULAR_VALUE = {torch.float32: 1e-6, torch.float64: 1e-12}
# Relative to the largest. The file of a covariance of fewer rows than features has noise in place
# of zeros, up to about this size.
_SMALLEST_EIGENVALUE = 1e-12


class _NuclearNorm(torch.autograd.Function):
    """The sum of singular values; its gradient U V^T does not divide by differences of them."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        s: Tensor
        if not ctx.needs_input_grad[0]:
            s = torch.linalg.svdvals(matrix)
            return s.sum(-1)
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        kept = s > _SMALLEST_SINGULAR_VALUE[s.dtype] * s[..., :1]
        ctx.save_for_backward((u * kept.unsqueeze(-2)) @ vh)
        return s.sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        directions: Tensor
        (directions,) = ctx.saved_tensors
        return slope[..., None, None] * directions


def nuclear_norm(matrix: Tensor) -> Tensor:
    """The sum of the singular values of (..., N, D), (...), float32 or float64.

    Where singular values are zero the gradient is the smallest of the possible ones.
    """
    norm: Tensor = _NuclearNorm.apply(matrix)
    return norm


@dataclass(frozen=True, eq=False)
class Gaussian:
    """What a set is compared with: a mean and a covariance, float64 on the CPU.

    Args:
        mean: (D,).
        covariance: (D, D).

    Raises:
        ValueError: if the shapes do not fit, or a number is not finite.
    """

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        d = len(self.mean) if self.mean.ndim == 1 else -1
        if self.covariance.shape != (d, d):
            raise ValueError(
                "expected a mean (D,) and a covariance (D, D), got "
                f"{tuple(self.mean.shape)} and {tuple(self.covariance.shape)}"
            )
        if not (self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise ValueError("the mean or the covariance of the reference has numbers not finite")

    @classmethod
    def read(cls, file: str | Path) -> Self:
        """The Gaussian of a file of moments, or of an ``.npz`` file of other tools.

        Args:
            file: of `Moments.save`; or with arrays mu and sigma, as of pytorch-fid and clean-fid;
                or with arrays <name>.mu and <name>.cov, as of fadtk, which is ``file.npz#name``.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds something else.
        """
        path, _, name = str(file).partition("#")
        if not path.endswith(".npz"):
            moments = Moments.load(path)
            return cls(moments.mean, moments.covariance)
        import numpy as np

        keys = (f"{name}.mu", f"{name}.cov") if name else ("mu", "sigma")
        with np.load(existing(path), allow_pickle=False) as arrays:
            if not set(keys) <= set(arrays.files):
                raise ValueError(f"expected {keys} in {path}, got {sorted(arrays.files)}")
            mean, covariance = (torch.from_numpy(arrays[key]).double() for key in keys)
        return cls(mean, covariance)

    @cached_property
    def root(self) -> Tensor:
        """(D, rank), times whose transpose is the covariance."""
        values: Tensor
        vectors: Tensor
        values, vectors = torch.linalg.eigh(self.covariance)
        kept = values > _SMALLEST_EIGENVALUE * values[-1]
        return vectors[:, kept] * values[kept].sqrt()

    def distance(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """The squared distance of rows from here, (...), at least 0 up to rounding.

        Covariances are divided by n - 1. Differentiable in rows and weights.

        Args:
            rows: (..., N, D), N at least 2, float32 or float64.
            weights: (..., N), of sum 1, all above 0; equal if not given. With weights w a
                covariance is divided by 1 - sum w^2, which is the same for equal ones.

        Raises:
            ValueError: if the reference has another number of features.
        """
        self._check(rows)
        if weights is None:
            mean = rows.mean(-2)
            centred = (rows - mean.unsqueeze(-2)) / math.sqrt(rows.shape[-2] - 1)
        else:
            mean = (weights.unsqueeze(-1) * rows).sum(-2)
            share = weights / (1 - weights.square().sum(-1, keepdim=True))
            centred = (rows - mean.unsqueeze(-2)) * share.sqrt().unsqueeze(-1)
        root, between = self.root.to(rows), (mean - self.mean.to(rows)).square().sum(-1)
        spread = centred.square().sum((-2, -1)) + root.square().sum()
        return between + spread - 2 * nuclear_norm(centred @ root)

    @torch.no_grad()
    def distances_without_each(self, blocks: Tensor, past: Tensor) -> Tensor:
        """The squared distances of a set without one block of rows after the other, (B,).

        The singular values of the rest follow from the N x N products of all rows, or from those of
        the features if there are fewer of them; in float64, whatever the rows are.

        Args:
            blocks: (B, R, D).
            past: (M, D), never left out. B R + M is at least R + 2.
        """
        self._check(blocks)
        b, r, d = blocks.shape
        rows = torch.cat([blocks.reshape(-1, d), past]).double()
        rest = len(rows) - r
        root, centred = self.root.to(rows), rows - rows.mean(0)
        sums = centred[: b * r].reshape(b, r, d).sum(1)
        means = rows.mean(0) - sums / rest
        squares = centred.square().sum(1)
        lost = squares[: b * r].reshape(b, r).sum(1) + sums.square().sum(1) / rest
        spread = (squares.sum() - lost) / (rest - 1) + root.square().sum()
        projected = centred @ root
        lefts = [slice(i * r, (i + 1) * r) for i in range(b)]
        if rest <= root.shape[1]:
            gram = projected @ projected.T
            grams = (_gram_of_rows(gram, left) for left in lefts)
        else:
            gram = projected.T @ projected
            grams = (_gram_of_features(gram, projected[left], rest) for left in lefts)
        overlap = torch.stack([_root_trace(g) for g in grams]) / math.sqrt(rest - 1)
        between = (means - self.mean.to(rows)).square().sum(1)
        return (between + spread - 2 * overlap).to(blocks.dtype)

    def _check(self, rows: Tensor) -> None:
        if rows.shape[-1] != len(self.mean):
            raise ValueError(
                f"the reference has {len(self.mean)} features, the embedding gives "
                f"{rows.shape[-1]}: it belongs to another embedding"
            )


def as_gaussian(reference: str | Path | Moments) -> Gaussian:
    """The reference of moments, or of a file, see `Gaussian.read`."""
    if isinstance(reference, Moments):
        return Gaussian(reference.mean, reference.covariance)
    return Gaussian.read(reference)


def _gram_of_rows(gram: Tensor, left: slice) -> Tensor:
    """Products of centred rows with each other, centred anew without those that are left out."""
    kept = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    kept[left] = False
    gathered = gram[kept]
    rest = len(gathered)
    with_left = gram[:, left].sum(1)
    shift = with_left[kept] / rest
    return gathered[:, kept] + shift[:, None] + shift + with_left[left].sum() / rest**2


def _gram_of_features(gram: Tensor, left: Tensor, rest: int) -> Tensor:
    """Products of features over centred rows, centred anew without those that are left out."""
    total = left.sum(0)
    return gram - left.T @ left - torch.outer(total, total) / rest


def _root_trace(gram: Tensor) -> Tensor:
    """The sum of the square roots of the eigenvalues that are more than rounding."""
    values: Tensor = torch.linalg.eigvalsh(gram)
    noise = len(values) * torch.finfo(values.dtype).eps * values[-1]
    return values[values > noise].sqrt().sum()
