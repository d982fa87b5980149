"""ProteinMPNN's graph network: the nearest residues of a backbone, and messages between them.

Source: Dauparas et al. (2022), Science 378:49, doi:10.1126/science.add2187, with the sizes,
constants and parameter names of github.com/dauparas/ProteinMPNN (MIT), so that its files load. Of
an edge, i is the residue that receives the message, its own; j is the end it comes from, one of
the k residues nearest to i, itself among them. The first layer of a message is linear in what it
sees of i, of the edge and of j, and is summed from the parts: what j gives is computed once for
each residue, not once for each edge, and nothing is concatenated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreward.sequences.backbone_edges import EdgeFeatures, gather

# Sums of messages are divided by 30 whatever the number of neighbours.
_SCALE = 30.0


class Encoding(NamedTuple):
    """A batch of backbones as the decoder sees them: no sequence in it, and no time.

    Attributes:
        nodes: (B, L, H), of the residues.
        edges: (B, L, k, H), from each neighbour to the residue.
        neighbours: (B, L, k) int64, the positions of the k nearest residues.
    """

    nodes: Tensor
    edges: Tensor
    neighbours: Tensor


class BackboneGraph(nn.Module):
    """Trunk of ProteinMPNN: an encoder of the backbone and a decoder of the sequence on it.

    Args:
        symbols: rows of the embedding, the last one for "unknown" or "masked".
        hidden: width H of nodes, edges and symbols.
        layers: of the encoder, and of the decoder.
        neighbours: k, of each residue; all residues if there are fewer.
        dropout: of every message.
    """

    def __init__(
        self, symbols: int, hidden: int, layers: int, neighbours: int, dropout: float
    ) -> None:
        super().__init__()
        self.features = EdgeFeatures(hidden, neighbours)
        self.W_e = nn.Linear(hidden, hidden)
        self.W_s = nn.Embedding(symbols, hidden)
        self.encoder_layers = nn.ModuleList(_EncoderLayer(hidden, dropout) for _ in range(layers))
        self.decoder_layers = nn.ModuleList(_DecoderLayer(hidden, dropout) for _ in range(layers))
        self.gradient_checkpointing = False

    def encode(self, coordinates: Tensor, residue_index: Tensor, chain: Tensor) -> Encoding:
        """The backbones as graphs; the arguments are those of `EdgeFeatures`."""
        features, neighbours = self.features(coordinates, residue_index, chain)
        edges = self.W_e(features)
        nodes = torch.zeros_like(edges[:, :, 0])
        for layer in self.encoder_layers:
            nodes, edges = self._run(layer, nodes, edges, neighbours)
        return Encoding(nodes, edges, neighbours)

    def encoding(self, condition: Mapping[str, Tensor]) -> Encoding:
        """The encoding that a condition is, or that of the backbones that it is."""
        return Encoding(**condition) if "edges" in condition else self.encode(**condition)

    def decode(
        self,
        encoding: Encoding,
        weights: Tensor,
        shown: Tensor | None = None,
        earlier: Tensor | None = None,
    ) -> Tensor:
        """The residues, (B, L, H), after they have heard of the sequence.

        Args:
            encoding: of the backbones.
            weights: (B, L, symbols), one-hot or relaxed.
            shown: (B, L, 1) in [0, 1], whether the others hear from a residue what it has heard;
                where not, they hear its node of the encoder. All if not given.
            earlier: (B, L, k, 1) bool, whether a residue hears that and the symbol of each
                neighbour. All if not given.
        """
        # Through the module, so that an adapter on it is heard.
        symbols = weights @ self.W_s(torch.arange(weights.shape[-1], device=weights.device))
        nodes = encoding.nodes
        for layer in self.decoder_layers:
            told = nodes if shown is None else torch.lerp(encoding.nodes, nodes, shown)
            nodes = self._run(layer, nodes, told, symbols, encoding, earlier)
        return nodes

    def reset_parameters(self) -> None:
        """Glorot's uniform law for all matrices, as in the original."""
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def _run(self, layer: nn.Module, *inputs: object) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            # Set by `ModelMixin.enable_gradient_checkpointing`.
            return self._gradient_checkpointing_func(layer, *inputs)  # type: ignore[no-any-return, operator]
        return layer(*inputs)  # type: ignore[no-any-return]


class _PairLinear(nn.Module):
    """A linear map of (own, edge, *ends), each H wide; not an `nn.Linear`, since no adapter fits.

    PEFT says so if it is asked for one. An adapter would expect the concatenation.
    """

    def __init__(self, hidden: int, parts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, parts * hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))

    def of_ends(self, *features: Tensor) -> Tensor:
        """What residues with these features, each (..., H), give to others."""
        weights = self.weight.split(len(self.weight), 1)[2:]
        return torch.stack([F.linear(x, w) for x, w in zip(features, weights, strict=True)]).sum(0)

    def forward(self, own: Tensor, edges: Tensor, ends: Tensor) -> Tensor:
        of_own, of_edge = self.weight.split(len(self.weight), 1)[:2]
        return F.linear(own, of_own, self.bias)[:, :, None] + F.linear(edges, of_edge) + ends


class _FeedForward(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.W_in = nn.Linear(hidden, 4 * hidden)
        self.W_out = nn.Linear(4 * hidden, hidden)

    def forward(self, nodes: Tensor) -> Tensor:
        return self.W_out(F.gelu(self.W_in(nodes)))  # type: ignore[no-any-return]


class _EncoderLayer(nn.Module):
    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.W1, self.W11 = _PairLinear(hidden, 3), _PairLinear(hidden, 3)
        self.W2, self.W12 = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.W3, self.W13 = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(hidden) for _ in range(3))
        self.dense = _FeedForward(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, nodes: Tensor, edges: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
        ends = gather(self.W1.of_ends(nodes), neighbours)
        message = self.W3(F.gelu(self.W2(F.gelu(self.W1(nodes, edges, ends)))))
        nodes = self.norm1(nodes + self.dropout(message.sum(2) / _SCALE))
        nodes = self.norm2(nodes + self.dropout(self.dense(nodes)))
        ends = gather(self.W11.of_ends(nodes), neighbours)
        message = self.W13(F.gelu(self.W12(F.gelu(self.W11(nodes, edges, ends)))))
        return nodes, self.norm3(edges + self.dropout(message))


class _DecoderLayer(nn.Module):
    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.W1 = _PairLinear(hidden, 4)
        self.W2, self.W3 = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.dense = _FeedForward(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        nodes: Tensor,
        told: Tensor,
        symbols: Tensor,
        encoding: Encoding,
        earlier: Tensor | None,
    ) -> Tensor:
        ends = gather(self.W1.of_ends(symbols, told), encoding.neighbours)
        if earlier is not None:
            unknown = self.W1.of_ends(torch.zeros_like(symbols), encoding.nodes)
            ends = torch.where(earlier, ends, gather(unknown, encoding.neighbours))
        message = self.W3(F.gelu(self.W2(F.gelu(self.W1(nodes, encoding.edges, ends)))))
        nodes = self.norm1(nodes + self.dropout(message.sum(2) / _SCALE))
        return self.norm2(nodes + self.dropout(self.dense(nodes)))  # type: ignore[no-any-return]
