"""Reference sets from files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffreward.exemplars import exemplars, write_reference
from diffreward.moments import Moments, about, load_rows
from diffreward.rewards.frechet import FrechetDistance
from diffreward.samples import Images, Samples, images


def mean_colour(samples: Samples, prompts: list[str]) -> Tensor:
    return images(samples).mean((2, 3))[:, None]


def pictures(folder: Path) -> Tensor:
    """Three plain pictures of different sizes, one in a folder below; their colours."""
    levels = torch.tensor([[10, 20, 30], [200, 100, 0], [0, 50, 255]], dtype=torch.uint8)
    places = ("b.png", "below/c.png", "a.png")
    for level, place, size in zip(levels, places, (4, 5, 6), strict=True):
        (folder / place).parent.mkdir(exist_ok=True)
        picture = np.broadcast_to(level.numpy(), (size, size + 1, 3))
        Image.fromarray(np.ascontiguousarray(picture)).save(folder / place)
    return levels[[2, 0, 1]] / 255


def test_all_files_of_a_folder_are_exemplars_in_the_order_of_their_names(tmp_path: Path) -> None:
    colours = pictures(tmp_path)
    found = torch.cat([mean_colour(*one)[:, 0] for one in exemplars(tmp_path)])
    torch.testing.assert_close(found, colours)


def test_lines_of_a_text_file_are_exemplars(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("a cat\n\n  a dog \n")
    assert [samples.strings for samples, _ in exemplars(file)] == [("a cat",), ("a dog",)]


def test_moments_and_rows_are_written_with_what_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    colours = pictures(folder)
    file = tmp_path / "reference.safetensors"
    assert write_reference(mean_colour, folder, file, False, "colour") == (3, 3)
    torch.testing.assert_close(Moments.load(file).mean, colours.double().mean(0), atol=1e-7, rtol=0)
    assert about(file)["embedding"] == "colour"
    same = Images(colours[:, :, None, None].expand(3, 3, 2, 2))
    score = FrechetDistance(mean_colour, file)(same, [""] * 3)
    assert score.mean().abs() < 1e-6
    assert write_reference(mean_colour, folder, file, True, "colour") == (3, 3)
    torch.testing.assert_close(load_rows(file), colours)


def test_nothing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no files in"):
        list(exemplars(tmp_path / "missing"))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png"):
        list(exemplars(tmp_path))
