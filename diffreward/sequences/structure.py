"""The backbone of a protein, read from a PDB or mmCIF file by Biopython."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffreward.sequences.protein_graph import BackboneGraph

_ATOMS = ("N", "CA", "C", "O")
_CIF = (".cif", ".mmcif")


@dataclass(frozen=True)
class Backbone:
    """The L residues of one or more chains that have all four atoms.

    Attributes:
        coordinates: (L, 4, 3) float32 in angstrom, of N, CA, C and O.
        residue_index: (L,) int64, counted along each chain from 0; residues that the file leaves
            out are counted, by their numbers in the file.
        chain: (L,) int64, 0 for the first chain.
        sequence: what the file says is there, L letters; X for what is not one of the twenty.
    """

    coordinates: Tensor
    residue_index: Tensor
    chain: Tensor
    sequence: str

    def __len__(self) -> int:
        return len(self.sequence)


def read_backbone(source: str) -> Backbone:
    """Read the first model of a file; of several places of an atom the most occupied.

    Args:
        source: the path of a PDB file, or of an mmCIF file that ends in ``.cif`` or ``.mmcif``; all
            chains are read, or the one that is named, as in ``5l33.pdb:A``.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if Biopython is not installed.
        ValueError: if there is no such chain, or no residue with all atoms.
    """
    path, name = _split(source)
    chains = {chain.id: chain for chain in next(iter(_parse(path)), [])}
    if name is not None and name not in chains:
        raise ValueError(f"{path} has no chain {name!r}; it has {sorted(chains)}")
    chosen = chains if name is None else {name: chains[name]}
    found = [
        (number, index, residue)
        for number, chain in enumerate(chosen.values())
        for index, residue in _counted(chain)
    ]
    whole = [row for row in found if all(atom in row[2] for atom in _ATOMS)]
    if not whole:
        raise ValueError(f"{source} has no residue with the atoms {', '.join(_ATOMS)}")
    numbers, indices, residues = zip(*whole, strict=True)
    coordinates = [[residue[atom].coord.tolist() for atom in _ATOMS] for residue in residues]
    return Backbone(
        coordinates=torch.tensor(coordinates, dtype=torch.float32),
        residue_index=torch.tensor(indices),
        chain=torch.tensor(numbers),
        sequence="".join(_letter(residue) for residue in residues),
    )


def read_distinct(
    sources: Sequence[str], length: int | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """The G different backbones among B sources, and which of them each source is, (B,) int64.

    Each is read once. The tensors are stacked, (G, L, ...), and named as `BackboneGraph.encode`
    takes them.

    Args:
        sources: at least one, as of `read_backbone`.
        length: L; that of the first if not given.

    Raises:
        ValueError: if they are not all of this length; besides, what `read_backbone` raises.
    """
    backbones = {source: read_backbone(source) for source in dict.fromkeys(sources)}
    lengths = {source: len(backbone) for source, backbone in backbones.items()}
    expected = next(iter(lengths.values())) if length is None else length
    if set(lengths.values()) != {expected}:
        raise ValueError(
            f"the backbones of one call have one length, that of its sequences: expected "
            f"{expected} residues, got {lengths}"
        )
    tensors = {
        "coordinates": torch.stack([backbone.coordinates for backbone in backbones.values()]),
        "residue_index": torch.stack([backbone.residue_index for backbone in backbones.values()]),
        "chain": torch.stack([backbone.chain for backbone in backbones.values()]),
    }
    places = {source: i for i, source in enumerate(backbones)}
    return tensors, torch.tensor([places[source] for source in sources])


def encode_files(
    graph: BackboneGraph, sources: Sequence[str], length: int | None = None
) -> dict[str, Tensor]:
    """The encodings of B sources by name, each (B, ...), on the graph's device.

    Each backbone is read and encoded once. Arguments and errors are those of `read_distinct`.
    """
    tensors, which = read_distinct(sources, length)
    device = graph.W_e.weight.device
    encoding = graph.encode(**{name: tensor.to(device) for name, tensor in tensors.items()})
    return {name: tensor[which.to(device)] for name, tensor in encoding._asdict().items()}


def _split(source: str) -> tuple[Path, str | None]:
    """The file and the chain. A colon may be part of the path: the file decides."""
    whole = Path(source).expanduser()
    if whole.is_file():
        return whole, None
    stem, colon, chain = source.rpartition(":")
    path = Path(stem).expanduser()
    if not colon or not path.is_file():
        raise FileNotFoundError(
            f"there is no structure at {whole.absolute()}; a prompt is the path of a PDB or mmCIF "
            "file, or path:chain"
        )
    return path, chain


def _parse(path: Path) -> Any:
    try:
        from Bio.PDB.MMCIFParser import MMCIFParser
        from Bio.PDB.PDBExceptions import PDBConstructionWarning
        from Bio.PDB.PDBParser import PDBParser
    except ImportError as error:
        raise ImportError("structures are read by Biopython: pip install biopython") from error

    parser: Any = MMCIFParser if path.suffix.lower() in _CIF else PDBParser
    with warnings.catch_warnings():
        # Of records that say nothing about the backbone.
        warnings.simplefilter("ignore", PDBConstructionWarning)
        return parser(QUIET=True).get_structure(path.stem, str(path))


def _counted(chain: Any) -> Iterator[tuple[int, Any]]:
    """The amino acids of a chain and their places in it; an insertion (52A) is one place more."""
    index, last = 0, None
    for residue in chain:
        kind, number, _ = residue.id
        # Selenomethionine stands in for methionine and is written among the hetero atoms.
        if kind not in (" ", "H_MSE"):
            continue
        if last is not None:
            index += max(1, number - last)
        last = number
        yield index, residue


def _letter(residue: Any) -> str:
    from Bio.Data.PDBData import protein_letters_3to1

    letters: Mapping[str, str] = protein_letters_3to1
    return letters.get(residue.resname, "M" if residue.resname == "MSE" else "X")
