import pytest
import torch

from diffreward.audio.windows import (
    covering_windows,
    pad,
    repeat,
    repeat_then_pad,
    trailing_windows,
)


def starts(windows: torch.Tensor) -> list[list[int]]:
    return [[int(row[0]), int(row[-1])] for row in windows[0]]


def count(length: int) -> torch.Tensor:
    return torch.arange(1, length + 1)[None].float()


@pytest.mark.parametrize(
    ("length", "hop", "expected"),
    [
        (4, 4, [[1, 4]]),
        (5, 4, [[1, 4], [2, 5]]),
        (8, 4, [[1, 4], [5, 8]]),
        (10, 4, [[1, 4], [5, 8], [7, 10]]),
        (8, 2, [[1, 4], [3, 6], [5, 8]]),
        (9, 2, [[1, 4], [3, 6], [5, 8], [6, 9]]),
    ],
)
def test_covering_windows_end_where_the_sound_ends(
    length: int, hop: int, expected: list[list[int]]
) -> None:
    windows = covering_windows(count(length), 4, hop)
    assert starts(windows) == expected
    assert torch.equal(windows.diff(dim=-1), torch.ones(1, len(expected), 3))


@pytest.mark.parametrize(
    ("length", "hop", "expected"),
    [
        (3, 4, [[1, 2, 3, 0]]),
        (4, 4, [[1, 2, 3, 4]]),
        (5, 4, [[1, 2, 3, 4], [5, 0, 0, 0]]),
        (5, 2, [[1, 2, 3, 4], [3, 4, 5, 0], [5, 0, 0, 0]]),
        (11, 5, [[1, 2, 3, 4], [6, 7, 8, 9], [11, 0, 0, 0]]),
        (10, 5, [[1, 2, 3, 4], [6, 7, 8, 9]]),
    ],
)
def test_trailing_windows_begin_as_long_as_there_is_sound(
    length: int, hop: int, expected: list[list[int]]
) -> None:
    assert trailing_windows(count(length), 4, hop)[0].tolist() == expected


def test_short_sounds_fill_a_window_in_three_ways() -> None:
    assert repeat_then_pad(count(3), 8).tolist() == [[1, 2, 3, 1, 2, 3, 0, 0]]
    assert repeat(count(3), 8).tolist() == [[1, 2, 3, 1, 2, 3, 1, 2]]
    assert pad(count(3), 8).tolist() == [[1, 2, 3, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("fill", [repeat_then_pad, repeat, pad])
def test_a_full_window_stays_as_it_is(fill: object) -> None:
    assert fill(count(8), 8).tolist() == count(8).tolist()  # type: ignore[operator]


def test_no_window_is_cut_from_a_shorter_sound() -> None:
    with pytest.raises(ValueError, match="a window has 4 samples, the sounds have 3"):
        covering_windows(count(3), 4, 4)
