import base64
import math
import sys
from pathlib import Path

import pytest

from diffreward.logos import information, logos
from diffreward.record import Sample


def samples(folder: Path, *strings: str, suffix: str = ".txt") -> list[Sample]:
    folder.mkdir()
    found = [Sample(folder / f"{i:03d}{suffix}", "", {}) for i in range(len(strings))]
    for sample, string in zip(found, strings, strict=True):
        sample.file.write_text(string)
    return found


def test_a_letter_that_all_share_has_the_bits_of_the_alphabet_less_those_of_chance() -> None:
    heights = information(["AG", "AG", "AT", "AT"], "ACGT")
    chance = 3 / (2 * 4 * math.log(2))
    assert heights[0].tolist() == pytest.approx([2 - chance, 0, 0, 0])
    assert heights[1].tolist() == pytest.approx([0, 0, (1 - chance) / 2, (1 - chance) / 2])


def test_a_position_without_information_has_no_letters() -> None:
    assert information(list("ACGT"), "ACGT").tolist() == [[0, 0, 0, 0]]
    assert (information(list("ACDE"), "ACDEFGHIKLMNPQRSTVWY") == 0).all()


def test_each_evaluation_has_a_logo(tmp_path: Path) -> None:
    pytest.importorskip("logomaker")
    before = samples(tmp_path / "0", "ACGT", "CCGT")
    after = samples(tmp_path / "9", "ACGA", "ACGA", "ACGA")
    found = logos({0: before, 9: after}, [0, 9])
    assert [(one.update, one.count, one.length, one.shown) for one in found] == [
        (0, 2, 4, 4),
        (9, 3, 4, 4),
    ]
    head, _, content = found[0].picture.partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(content)[1:4] == b"PNG"
    assert found[0].picture != found[1].picture


def test_long_sequences_are_shown_as_far_as_a_page_goes() -> None:
    assert len(information(["A" * 320, "C" * 320], "ACGT")) == 300


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("letters", ["ACGU", "ACDEFGHIKLMNPQRSTVWY"])
def test_other_alphabets_have_logos(tmp_path: Path, letters: str) -> None:
    pytest.importorskip("logomaker")
    assert len(logos({0: samples(tmp_path / "0", letters, letters[::-1])}, [0])) == 1


def test_what_is_no_alignment_has_none(tmp_path: Path) -> None:
    kinds = {
        "one": ["ACGT"],
        "lengths": ["ACGT", "ACG"],
        "empty": ["", ""],
        "text": ["a b c", "d e f"],
        "numbers": ["0.1 0.2", "0.3 0.4"],
    }
    for name, strings in kinds.items():
        assert logos({0: samples(tmp_path / name, *strings)}, [0]) == []
    assert logos({0: samples(tmp_path / "sounds", "ACGT", "ACGT", suffix=".wav")}, [0]) == []
    missing = samples(tmp_path / "gone", "ACGT", "ACGT")
    missing[1].file.unlink()
    assert logos({0: missing}, [0]) == []
    assert logos({}, []) == []


def test_without_logomaker_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "logomaker" else real(name)
    )
    assert logos({0: samples(tmp_path / "0", "ACGT", "ACGT")}, [0]) == []


def test_matplotlib_is_left_as_it_was(tmp_path: Path) -> None:
    pytest.importorskip("logomaker")
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert logos({0: samples(tmp_path / "0", "ACGT", "ACGT")}, [0])
    assert dict(matplotlib.rcParams) == before
