"""ProteinMPNN written out: one loop per residue and neighbour, one concatenation per message."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

State = Mapping[str, Tensor]

# Pairs of atoms in the order of the published weights.
PAIRS = (
    *("CA-CA", "N-N", "C-C", "O-O", "CB-CB", "CA-N", "CA-C", "CA-O", "CA-CB", "N-C"),
    *("N-O", "N-CB", "CB-C", "CB-O", "O-C", "N-CA", "C-CA", "O-CA", "CB-CA", "C-N"),
    *("O-N", "CB-N", "C-CB", "O-CB", "C-O"),
)


def shapes(symbols: int = 21, hidden: int = 128, layers: int = 3) -> dict[str, tuple[int, ...]]:
    """The parameters of a published file."""
    linears = {
        "features.embeddings.linear": (16, 66),
        "W_e": (hidden, hidden),
        "W_out": (symbols, hidden),
    }
    norms = ["features.norm_edges"]
    for kind, parts, ends in (
        ("encoder", 3, ("1", "2", "3", "11", "12", "13")),
        ("decoder", 4, "123"),
    ):
        for layer in range(layers):
            stem = f"{kind}_layers.{layer}."
            widths = {"1": parts * hidden, "11": parts * hidden}
            linears |= {f"{stem}W{end}": (hidden, widths.get(end, hidden)) for end in ends}
            linears |= {f"{stem}dense.W_in": (4 * hidden, hidden)}
            linears |= {f"{stem}dense.W_out": (hidden, 4 * hidden)}
            norms += [f"{stem}norm{n}" for n in range(1, parts + 1 if kind == "encoder" else 3)]
    return {
        "features.edge_embedding.weight": (hidden, 16 + 25 * 16),
        "W_s.weight": (symbols, hidden),
        **{f"{name}.weight": shape for name, shape in linears.items()},
        **{f"{name}.bias": shape[:1] for name, shape in linears.items()},
        **{f"{name}.{part}": (hidden,) for name in norms for part in ("weight", "bias")},
    }


def state(symbols: int = 21, hidden: int = 16, layers: int = 2) -> dict[str, Tensor]:
    """Random parameters under the published names."""
    source = Generator().manual_seed(0)
    parameters = {}
    for name, size in shapes(symbols, hidden, layers).items():
        noise = torch.randn(size, generator=source)
        # Of the size that keeps what residues tell each other audible.
        one_dimensional = 0.2 * noise + float("norm" in name and name.endswith("weight"))
        parameters[name] = noise / size[1] ** 0.5 if len(size) > 1 else one_dimensional
    return parameters


def save(file: Path, parameters: State, neighbours: int) -> str:
    """The parameters as a published file; returns its path."""
    torch.save({"num_edges": neighbours, "model_state_dict": dict(parameters)}, file)
    return str(file)


def _linear(p: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def _norm(p: State, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])


def _message(p: State, stem: str, ends: tuple[str, str, str], x: Tensor) -> Tensor:
    for end in ends[:2]:
        x = F.gelu(_linear(p, f"{stem}W{end}", x))
    return _linear(p, f"{stem}W{ends[2]}", x)


def _node(p: State, stem: str, node: Tensor, messages: list[Tensor]) -> Tensor:
    node = _norm(p, f"{stem}norm1", node + torch.stack(messages).sum(0) / 30)
    dense = _linear(p, f"{stem}dense.W_out", F.gelu(_linear(p, f"{stem}dense.W_in", node)))
    return _norm(p, f"{stem}norm2", node + dense)


def _edge(p: State, atoms: list[dict[str, Tensor]], i: int, j: int, offset: int) -> Tensor:
    bumps = []
    for pair in PAIRS:
        own, end = pair.split("-")
        distance = ((atoms[i][own] - atoms[j][end]).square().sum() + 1e-6).sqrt()
        bumps.append(torch.exp(-(((distance - torch.linspace(2, 22, 16)) / 1.25) ** 2)))
    row = F.one_hot(torch.tensor(offset), 66).float()
    features = torch.cat([_linear(p, "features.embeddings.linear", row), *bumps])
    return _linear(
        p, "W_e", _norm(p, "features.norm_edges", _linear(p, "features.edge_embedding", features))
    )


def encode(
    p: State, row: Mapping[str, Tensor], k: int
) -> tuple[list[Tensor], list[list[Tensor]], list[list[int]]]:
    """Nodes, edges and neighbours of one backbone, `row` without the dimension of the batch."""
    atoms = []
    for n, ca, c, o in row["coordinates"]:
        b, d = ca - n, c - ca
        cb = ca - 0.58273431 * torch.linalg.cross(b, d) + 0.56802827 * b - 0.54067466 * d
        atoms.append({"N": n, "CA": ca, "C": c, "O": o, "CB": cb})
    length, index, chain = len(atoms), row["residue_index"].tolist(), row["chain"].tolist()
    apart = torch.cdist(row["coordinates"][:, 1], row["coordinates"][:, 1])
    neighbours = [apart[i].argsort()[:k].tolist() for i in range(length)]
    edges = [
        [
            _edge(
                p,
                atoms,
                i,
                j,
                max(0, min(64, index[i] - index[j] + 32)) if chain[i] == chain[j] else 65,
            )
            for j in neighbours[i]
        ]
        for i in range(length)
    ]
    nodes = [torch.zeros_like(edges[0][0])] * length
    for layer in range(_layers(p)):
        stem = f"encoder_layers.{layer}."
        nodes = [
            _node(
                p,
                stem,
                nodes[i],
                [
                    _message(p, stem, ("1", "2", "3"), torch.cat([nodes[i], edge, nodes[j]]))
                    for j, edge in zip(neighbours[i], edges[i], strict=True)
                ],
            )
            for i in range(length)
        ]
        edges = [
            [
                _norm(
                    p,
                    f"{stem}norm3",
                    edge
                    + _message(p, stem, ("11", "12", "13"), torch.cat([nodes[i], edge, nodes[j]])),
                )
                for j, edge in zip(neighbours[i], edges[i], strict=True)
            ]
            for i in range(length)
        ]
    return nodes, edges, neighbours


def logits(p: State, row: Mapping[str, Tensor], k: int, ids: list[int], seen: Tensor) -> Tensor:
    """Of all symbols at each residue, (L, symbols); `seen` is (L, L) bool, own residue first."""
    nodes, edges, neighbours = encode(p, row, k)
    encoded, symbols = nodes, p["W_s.weight"][ids]
    for layer in range(_layers(p)):
        stem = f"decoder_layers.{layer}."
        nodes = [
            _node(
                p,
                stem,
                nodes[i],
                [
                    _message(
                        p,
                        stem,
                        ("1", "2", "3"),
                        torch.cat(
                            [nodes[i], edge, symbols[j], nodes[j]]
                            if seen[i, j]
                            else [nodes[i], edge, torch.zeros_like(symbols[j]), encoded[j]]
                        ),
                    )
                    for j, edge in zip(neighbours[i], edges[i], strict=True)
                ],
            )
            for i in range(len(nodes))
        ]
    return _linear(p, "W_out", torch.stack(nodes))


def _layers(p: State) -> int:
    return sum(name.endswith("norm3.bias") for name in p)
