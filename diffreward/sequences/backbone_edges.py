"""Edges of a backbone's graph: who is near to whom, and how they lie to each other.

Source: Dauparas et al. (2022), Science 378:49, doi:10.1126/science.add2187, with the constants, the
order of the features and the parameter names of github.com/dauparas/ProteinMPNN (MIT).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Atoms as they stand in `_atoms`, pairs as the official weights expect them: own atom, end's atom.
_PAIRS = (
    *((1, 1), (0, 0), (2, 2), (3, 3), (4, 4), (1, 0), (1, 2), (1, 3), (1, 4), (0, 2), (0, 3)),
    *((0, 4), (4, 2), (4, 3), (3, 2), (0, 1), (2, 1), (3, 1), (4, 1), (2, 0), (3, 0), (4, 0)),
    *((2, 4), (3, 4), (2, 3)),
)
# Bumps of a distance, in angstrom: centres from 2 to 22, 1.25 wide.
_BUMPS, _NEAREST, _FARTHEST = 16, 2.0, 22.0
# Offsets along a chain are told apart up to 32 residues; one more class is for other chains.
_MAX_OFFSET, _OFFSET_FEATURES = 32, 16


def gather(features: Tensor, neighbours: Tensor) -> Tensor:
    """What each neighbour has: features (B, L, H) at neighbours (B, L, k) are (B, L, k, H)."""
    index = neighbours.flatten(1)[..., None].expand(-1, -1, features.shape[-1])
    gathered: Tensor = features.gather(1, index).unflatten(1, neighbours.shape[1:])
    return gathered


class EdgeFeatures(nn.Module):
    """Distances of five atoms of either residue, and the offset along the chain.

    Args:
        hidden: width H of the features.
        neighbours: k, of each residue; all residues if there are fewer.
    """

    def __init__(self, hidden: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.embeddings = _OffsetEmbedding()
        self.edge_embedding = nn.Linear(_OFFSET_FEATURES + _BUMPS * len(_PAIRS), hidden, bias=False)
        self.norm_edges = nn.LayerNorm(hidden)

    def forward(
        self, coordinates: Tensor, residue_index: Tensor, chain: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features (B, L, k, H) of the edges to the neighbours (B, L, k) int64.

        Args:
            coordinates: (B, L, 4, 3) in angstrom, of N, CA, C and O.
            residue_index: (B, L) int64, numbers of the residues along their chain, gaps counted.
            chain: (B, L) int64, different for different chains.
        """
        # Half precision would move atoms by tenths of an angstrom.
        atoms = _atoms(coordinates.float())
        neighbours = _nearest(atoms[:, :, 1], self.neighbours)
        theirs = gather(atoms.flatten(2), neighbours).unflatten(-1, atoms.shape[2:])
        own, end = (list(column) for column in zip(*_PAIRS, strict=True))
        distances = _distance(atoms[:, :, None, own], theirs[:, :, :, end])
        places = torch.stack([residue_index, chain], -1)
        their_index, their_chain = gather(places, neighbours).unbind(-1)
        offsets = self.embeddings(
            residue_index[..., None] - their_index, chain[..., None] == their_chain
        )
        features = torch.cat([offsets, _bumps(distances).flatten(-2)], -1)
        dtype = self.edge_embedding.weight.dtype
        return self.norm_edges(self.edge_embedding(features.to(dtype))), neighbours


class _OffsetEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * _MAX_OFFSET + 2, _OFFSET_FEATURES)

    def forward(self, offset: Tensor, same_chain: Tensor) -> Tensor:
        near = (offset + _MAX_OFFSET).clamp(0, 2 * _MAX_OFFSET)
        kind = torch.where(same_chain, near, 2 * _MAX_OFFSET + 1)
        rows = F.one_hot(kind, 2 * _MAX_OFFSET + 2)
        return self.linear(rows.to(self.linear.weight.dtype))  # type: ignore[no-any-return]


def _atoms(coordinates: Tensor) -> Tensor:
    """N, CA, C, O and the ideal place of CB, (B, L, 5, 3)."""
    n, ca, c, _ = coordinates.unbind(2)
    b, c = ca - n, c - ca
    a = torch.linalg.cross(b, c)
    cb = -0.58273431 * a + 0.56802827 * b - 0.54067466 * c + ca
    return torch.cat([coordinates, cb[:, :, None]], 2)


def _nearest(ca: Tensor, k: int) -> Tensor:
    """The k residues nearest to each by their CA, (B, L, k) int64."""
    distances = _distance(ca[:, :, None], ca[:, None])
    return distances.topk(min(k, ca.shape[1]), largest=False).indices


def _distance(a: Tensor, b: Tensor) -> Tensor:
    # The constant keeps the gradient finite where an atom meets itself.
    return ((a - b).square().sum(-1) + 1e-6).sqrt()


def _bumps(distances: Tensor) -> Tensor:
    """Radial basis functions of distances (...), (..., 16) in [0, 1]."""
    centres = torch.linspace(_NEAREST, _FARTHEST, _BUMPS, device=distances.device)
    width = (_FARTHEST - _NEAREST) / _BUMPS
    return torch.exp(-(((distances[..., None] - centres) / width) ** 2))
