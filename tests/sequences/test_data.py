"""Reading sequences: every format gives the same, and what is dropped is counted."""

import csv
import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffreward.sequences.data import SequenceFiles, reverse_complement
from diffreward.sequences.records import read_records

SEQUENCES = ["AACG", "ccgt", "TTTA", "GGGG"]
LENTIMPRA = Path(__file__).parents[2].parent / "shared" / "data" / "lentimpra_wtc11"


def fasta(path: Path, sequences: list[str]) -> str:
    """A file with two symbols per line."""
    lines = [
        f">{i} name\n" + "\n".join(s[j : j + 2] for j in range(0, len(s), 2)) + "\n"
        for i, s in enumerate(sequences)
    ]
    path.write_text("".join(lines))
    return str(path)


def table(path: Path, delimiter: str) -> str:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([("score", "seq"), *enumerate(SEQUENCES)])
    return str(path)


def compressed(path: Path) -> str:
    fasta(path.with_suffix(""), SEQUENCES)
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    return str(path)


def parquet(path: Path) -> str:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"sequence": SEQUENCES}).to_parquet(path)
    return str(path)


def saved(path: Path) -> str:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"sequence": SEQUENCES}).save_to_disk(path)
    return str(path)


MAKERS: dict[str, Callable[[Path], str]] = {
    "x.fasta": lambda path: fasta(path, SEQUENCES),
    "x.fa.gz": compressed,
    "x.csv": lambda path: table(path, ","),
    "x.tsv": lambda path: table(path, "\t"),
    "x.parquet": parquet,
    "folder": saved,
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_format_gives_the_same_sequences(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert read_records(MAKERS[name](tmp_path / name)) == SEQUENCES


def test_symbols_become_ids_in_the_order_of_the_alphabet(tmp_path: Path) -> None:
    corpus = SequenceFiles(fasta(tmp_path / "x.fa", SEQUENCES), "TGCA").read()
    rows = torch.cat([corpus.training, corpus.held_out]).tolist()
    assert sorted(rows) == sorted([[3, 3, 2, 1], [2, 2, 1, 0], [0, 0, 0, 3], [1, 1, 1, 1]])
    assert corpus.training.dtype == torch.int64 and corpus.alphabet == "TGCA"


def test_what_is_dropped_is_counted_by_reason(tmp_path: Path) -> None:
    source = fasta(tmp_path / "x.fa", [*SEQUENCES, "AANG", "AACG", "aacg", "AC", "A-CG", "TTTT"])
    corpus = SequenceFiles(source, "ACGT", length=4, held_out=0.4).read()
    assert corpus.read == 10 and list(corpus.dropped.values()) == [2, 1, 2]
    assert (len(corpus.training), len(corpus.held_out)) == (3, 2)
    assert "2 with other symbols" in corpus.text() and "3 sequences of 4" in corpus.text()


@pytest.mark.parametrize(("crop", "kept"), [("1:-1", "CGTA"), (":2", "AC"), ("-3:", "TAC")])
def test_a_crop_is_a_slice(crop: str, kept: str, tmp_path: Path) -> None:
    source = fasta(tmp_path / "x.fa", ["ACGTAC", "GCGTAG", "GGGGGG"])
    corpus = SequenceFiles(source, "ACGT", crop=crop).read()
    rows = torch.cat([corpus.training, corpus.held_out]).tolist()
    assert ["ACGT".index(symbol) for symbol in kept] in rows and corpus.length == len(kept)


def test_the_other_strand_is_read_backwards() -> None:
    assert reverse_complement("AACGT", "ACGT") == "ACGTT"
    assert reverse_complement("AACGU", "UGCA") == "ACGUU"


def test_both_strands_of_a_sequence_are_on_the_same_side_of_the_split(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(4, (60, 8), generator=generator).tolist()
    forward = ["".join("ACGT"[i] for i in row) for row in drawn]
    source = fasta(tmp_path / "x.fa", [*forward, *(reverse_complement(s, "ACGT") for s in forward)])
    corpus = SequenceFiles(source, "ACGT", both_strands=True, held_out=0.25).read()
    training, held_out = (
        {tuple(r) for r in t.tolist()} for t in (corpus.training, corpus.held_out)
    )
    assert len(training) == 90 and len(held_out) == 15
    others = {tuple(3 - i for i in reversed(row)) for row in held_out}  # 3 - i: the complement
    assert not training & (held_out | others)
    assert {tuple(3 - i for i in reversed(row)) for row in training} == training
    read = [["ACGT".index(symbol) for symbol in sequence] for sequence in forward]
    assert all(list(row) in read for row in held_out)
    assert corpus.dropped["read before"] == 60


def test_the_share_held_out_depends_on_the_seed_alone(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(4, (40, 9), generator=generator).tolist()
    source = fasta(tmp_path / "x.fa", ["".join("ACGT"[i] for i in row) for row in drawn])
    one, again, other = (
        SequenceFiles(source, "ACGT", held_out=0.25, seed=seed).read() for seed in (0, 0, 1)
    )
    assert torch.equal(one.held_out, again.held_out)
    assert not torch.equal(one.held_out, other.held_out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": "15"}, "START:STOP"),
        ({"crop": "-:3"}, "START:STOP"),
        ({"held_out": 0.0}, "between 0 and 1"),
        ({"alphabet": "ACGA"}, "different symbols"),
        ({"alphabet": "acgt"}, "upper case"),
        ({"alphabet": "ACDE", "both_strands": True}, "DNA .* or RNA"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceFiles(**{"sequences": "x.fa", "alphabet": "ACGT", **settings})  # type: ignore


def test_several_lengths_are_refused_with_a_way_out(tmp_path: Path) -> None:
    source = fasta(tmp_path / "x.fa", [*SEQUENCES, "AC"])
    with pytest.raises(ValueError, match=r"4 of 4, 1 of 2.*--length 4"):
        SequenceFiles(source, "ACGT").read()


def test_files_that_cannot_be_read_say_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty.fa").write_text("no record\n")
    (tmp_path / "x.csv").write_text("name,score\na,1\n")
    (tmp_path / "x.txt").write_text("ACGT\n")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_records(str(tmp_path / "nowhere.fa"))
    with pytest.raises(ValueError, match="no FASTA record"):
        read_records(str(tmp_path / "empty.fa"))
    with pytest.raises(ValueError, match=r"name.*score"):
        read_records(str(tmp_path / "x.csv"))
    with pytest.raises(ValueError, match=r"ends with one of"):
        read_records(str(tmp_path / "x.txt"))
    with pytest.raises(ValueError, match=r"2 records.*left"):
        SequenceFiles(fasta(tmp_path / "n.fa", ["NNNN", "ACGT"]), "ACGT").read()


@pytest.mark.skipif(not LENTIMPRA.is_dir(), reason="needs ../shared/data/lentimpra_wtc11")
def test_the_elements_of_the_lentimpra_library_are_known_by_number() -> None:
    names = ("elements.fasta", "WTC11_test.tsv", "WTC11_valid.tsv")
    files = SequenceFiles(
        [str(LENTIMPRA / name) for name in names], "ACGT", crop="15:-15", both_strands=True
    )
    corpus = files.read()
    # 18,481 records; counted apart from this code: 6,938 sequences, strands not told apart.
    assert corpus.read == 18481 and corpus.length == 200
    assert (len(corpus.training), len(corpus.held_out)) == (2 * (6938 - 347), 347)
