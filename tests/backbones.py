"""Backbones that no protein has, and files of them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

SHARED = Path(__file__).parents[2] / "shared" / "data" / "oracles" / "proteinmpnn_pdb"
ATOMS = ("N", "CA", "C", "O")
NAMES = {
    **{"A": "ALA", "C": "CYS", "D": "ASP", "E": "GLU", "F": "PHE", "G": "GLY", "H": "HIS"},
    **{"I": "ILE", "K": "LYS", "L": "LEU", "M": "MET", "N": "ASN", "P": "PRO", "Q": "GLN"},
    **{"R": "ARG", "S": "SER", "T": "THR", "V": "VAL", "W": "TRP", "Y": "TYR"},
}


def backbone(length: int, seed: int = 0) -> dict[str, Tensor]:
    """The arguments of `encode` for a random walk of some 4 angstrom a residue, one row."""
    source = Generator().manual_seed(seed)
    # Steps of one length would leave it open which residues are the nearest.
    ca = (2.5 * torch.randn(length, 3, generator=source)).cumsum(0)
    coordinates = ca[:, None] + torch.randn(length, 4, 3, generator=source)
    coordinates[:, 1] = ca
    places = torch.arange(length)
    return {
        "coordinates": coordinates[None],
        "residue_index": places[None],
        "chain": torch.zeros_like(places)[None],
    }


def atom_line(
    atom: str,
    residue: str,
    chain: str,
    number: str,
    place: Sequence[float],
    *,
    alternative: str = " ",
) -> str:
    """An atom of a PDB file; "52A" is a number with an insertion code, "H7" of a hetero atom."""
    record = "HETATM" if number.startswith("H") else "ATOM"
    number = number.removeprefix("H")
    digits, code = (number[:-1], number[-1]) if number[-1].isalpha() else (number, " ")
    x, y, z = place
    share = {"A": 0.4, "B": 0.6}.get(alternative, 1.0)
    return (
        f"{record:<6}    1  {atom:<3}{alternative}{residue} {chain}{digits:>4}{code}   "
        f"{x:8.3f}{y:8.3f}{z:8.3f}{share:6.2f}  0.00           {atom[0]}"
    )


def write_pdb(file: Path, coordinates: Tensor, sequence: str) -> str:
    """One chain, A, in a PDB file; returns its path."""
    lines = [
        atom_line(atom, NAMES[letter], "A", str(number), place)
        for number, (letter, residue) in enumerate(
            zip(sequence, coordinates.tolist(), strict=True), start=1
        )
        for atom, place in zip(ATOMS, residue, strict=True)
    ]
    file.write_text("\n".join([*lines, "END", ""]))
    return str(file)
