from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import ATOMS, SHARED, atom_line, backbone, write_pdb

from diffreward.sequences.structure import read_backbone, read_distinct

PLACE = (1.0, 2.0, 3.0)


def residue(name: str, chain: str, number: str, atoms: tuple[str, ...] = ATOMS) -> list[str]:
    return [atom_line(atom, name, chain, number, PLACE) for atom in atoms]


def write(folder: Path, *residues: list[str]) -> str:
    file = folder / "protein.pdb"
    file.write_text("\n".join([line for lines in residues for line in lines] + ["END", ""]))
    return str(file)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    coordinates = backbone(7)["coordinates"][0]
    found = read_backbone(write_pdb(tmp_path / "a.pdb", coordinates, "ACDEFGH"))
    # The format has three decimals.
    torch.testing.assert_close(found.coordinates, coordinates, atol=6e-4, rtol=0)
    assert found.sequence == "ACDEFGH" and len(found) == 7
    assert found.residue_index.tolist() == list(range(7))
    assert found.chain.tolist() == [0] * 7


def test_gaps_are_counted_and_insertions_are_one_place_each(tmp_path: Path) -> None:
    numbers = ["5", "6", "9", "9A", "9B", "10"]
    file = write(tmp_path, *[residue("GLY", "A", number) for number in numbers])
    assert read_backbone(file).residue_index.tolist() == [0, 1, 4, 5, 6, 7]


def test_a_residue_without_an_atom_is_left_out_and_counted(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        residue("GLY", "A", "1"),
        residue("ALA", "A", "2", ("N", "CA", "C")),
        residue("TRP", "A", "3"),
    )
    found = read_backbone(file)
    assert found.sequence == "GW" and found.residue_index.tolist() == [0, 2]


def test_water_is_no_residue_and_selenomethionine_is_methionine(tmp_path: Path) -> None:
    water = [atom_line("O", "HOH", "A", "H9", PLACE)]
    file = write(
        tmp_path,
        residue("GLY", "A", "1"),
        residue("MSE", "A", "H2"),
        residue("UNK", "A", "3"),
        water,
    )
    assert read_backbone(file).sequence == "GMX"


def test_the_most_occupied_place_counts(tmp_path: Path) -> None:
    alternatives = [
        atom_line("CA", "GLY", "A", "1", place, alternative=letter)
        for letter, place in (("A", (0, 0, 0)), ("B", (7, 8, 9)))
    ]
    file = write(tmp_path, residue("GLY", "A", "1", ("N", "C", "O")), alternatives)
    assert read_backbone(file).coordinates[0, 1].tolist() == [7, 8, 9]


def test_chains_are_numbered_or_chosen(tmp_path: Path) -> None:
    rows = [residue("GLY", "A", "1"), residue("ALA", "A", "2"), residue("TRP", "B", "1")]
    file = write(tmp_path, *rows)
    both, second = read_backbone(file), read_backbone(f"{file}:B")
    assert (both.sequence, second.sequence) == ("GAW", "W")
    assert both.chain.tolist() == [0, 0, 1] and second.chain.tolist() == [0]
    assert both.residue_index.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match=r"no chain 'C'; it has \['A', 'B'\]"):
        read_backbone(f"{file}:C")


def test_a_colon_may_be_part_of_the_path(tmp_path: Path) -> None:
    file = write_pdb(tmp_path / "a:B", backbone(2)["coordinates"][0], "GW")
    assert read_backbone(file).sequence == "GW"


def test_mmcif_says_the_same_as_pdb(tmp_path: Path) -> None:
    from Bio.PDB.mmcifio import MMCIFIO
    from Bio.PDB.PDBParser import PDBParser

    file = write_pdb(tmp_path / "a.pdb", backbone(5)["coordinates"][0], "ACDEF")
    writer = MMCIFIO()
    writer.set_structure(PDBParser(QUIET=True).get_structure("a", file))
    writer.save(str(tmp_path / "a.cif"))
    one, other = read_backbone(file), read_backbone(str(tmp_path / "a.cif:A"))
    assert one.sequence == other.sequence
    assert torch.equal(one.residue_index, other.residue_index)
    torch.testing.assert_close(one.coordinates, other.coordinates)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for source in ("nowhere.pdb", "nowhere.pdb:A"):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.pdb"):
            read_backbone(str(tmp_path / source))


def test_a_file_without_a_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no residue with the atoms N, CA, C, O"):
        read_backbone(write(tmp_path, residue("GLY", "A", "1", ("CA",))))
    with pytest.raises(ValueError, match="no residue"):
        read_backbone(write(tmp_path))


def test_each_backbone_is_read_once_and_keeps_its_rows(tmp_path: Path) -> None:
    files = [
        write_pdb(tmp_path / f"{seed}.pdb", backbone(3, seed)["coordinates"][0], "GAW")
        for seed in (0, 1)
    ]
    tensors, which = read_distinct([files[1], files[0], files[1]])
    assert which.tolist() == [0, 1, 0]
    expected = backbone(3, 1)["coordinates"][0]
    torch.testing.assert_close(tensors["coordinates"][0], expected, atol=6e-4, rtol=0)
    assert {name: len(tensor) for name, tensor in tensors.items()} == {
        "coordinates": 2,
        "residue_index": 2,
        "chain": 2,
    }


def test_backbones_of_other_lengths_are_refused_by_name(tmp_path: Path) -> None:
    files = [
        write_pdb(tmp_path / f"{n}.pdb", backbone(n)["coordinates"][0], "G" * n) for n in (2, 3)
    ]
    with pytest.raises(ValueError, match=r"expected 2 residues, got .*3\.pdb': 3"):
        read_distinct(files)
    with pytest.raises(ValueError, match="expected 4 residues"):
        read_distinct(files[:1], length=4)


@pytest.mark.parametrize(("name", "length"), [("5L33", 106), ("6MRR", 68)])
def test_real_backbones_are_read_as_proteinmpnn_reads_them(name: str, length: int) -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not here")
    found = read_backbone(str(SHARED / f"{name}.pdb:A"))
    with np.load(SHARED / f"{name}_proteinmpnn_unconditional_probs.npz") as arrays:
        native = "".join("ACDEFGHIKLMNPQRSTVWYX"[i] for i in arrays["S"])
    assert found.sequence == native and len(found) == length
    steps = found.coordinates[:, 1].diff(dim=0).norm(dim=1)
    assert steps.min() > 3.7 and steps.max() < 3.95
