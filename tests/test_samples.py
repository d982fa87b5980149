from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffreward.random import stream
from diffreward.samples import (
    Images,
    Samples,
    Tokens,
    Vectors,
    concatenate,
    images,
    tokens,
    vectors,
)


def a_batch_of(kind: str) -> Samples:
    return {
        "images": Images(torch.rand(4, 3, 6, 5, generator=stream(0))),
        "tokens": Tokens(torch.randint(4, (4, 7), generator=stream(1)), "ACGT"),
        "relaxed tokens": Tokens(torch.rand(4, 7, 4, generator=stream(2)), "ACGT"),
        "vectors": Vectors(torch.randn(4, 2, generator=stream(3))),
    }[kind]


KINDS = ["images", "tokens", "relaxed tokens", "vectors"]
ACCESS: dict[str, Callable[[Samples], Tensor]] = {
    "images": images,
    "tokens": tokens,
    "relaxed tokens": tokens,
    "vectors": vectors,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [torch.tensor([2, 0, 0]), slice(1, 3), slice(0, 0)])
def test_rows_are_chosen_as_from_a_tensor(kind: str, rows: Any) -> None:
    samples = a_batch_of(kind)
    chosen = samples[rows]
    assert type(chosen) is type(samples)
    assert torch.equal(ACCESS[kind](chosen), ACCESS[kind](samples)[rows])
    assert len(chosen) == len(ACCESS[kind](samples)[rows])


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_joined_to_the_whole(kind: str) -> None:
    samples = a_batch_of(kind)
    whole = concatenate([samples[:1], samples[1:3], samples[3:]])
    assert type(whole) is type(samples)
    assert torch.equal(ACCESS[kind](whole), ACCESS[kind](samples))


def test_no_parts_make_no_whole() -> None:
    with pytest.raises(ValueError, match="zero batches"):
        concatenate([])


def test_what_is_no_tensor_is_kept_when_rows_are_chosen() -> None:
    samples = a_batch_of("tokens")[:2]
    assert isinstance(samples, Tokens)
    assert samples.alphabet == "ACGT"


@pytest.mark.parametrize(("kind", "wrong"), [("images", "tokens"), ("tokens", "vectors")])
def test_a_reward_for_another_kind_says_so(kind: str, wrong: str) -> None:
    message = f"scores {kind.capitalize()}; the model produced {wrong.capitalize()}"
    with pytest.raises(TypeError, match=message):
        ACCESS[kind](a_batch_of(wrong))


def test_levels_are_rounded_and_clamped_not_cut() -> None:
    pixels = torch.tensor([0.0, 1.0, 0.5, 0.4999 / 255, 0.5001 / 255, -0.2, 1.3, 254.6 / 255])
    levels = Images(pixels.expand(1, 3, 1, 8)).uint8()
    assert levels.dtype == torch.uint8
    assert levels.shape == (1, 1, 8, 3)
    assert levels[0, 0, :, 0].tolist() == [0, 255, 128, 0, 1, 0, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_pil_images_have_the_levels_in_the_right_places(dtype: torch.dtype) -> None:
    pixels = torch.rand(2, 3, 4, 6, generator=stream(5)).to(dtype).requires_grad_()
    pictures = Images(pixels).pil()
    assert [picture.size for picture in pictures] == [(6, 4), (6, 4)]
    for picture, image in zip(pictures, pixels.detach().float(), strict=True):
        seen = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        assert torch.equal(seen, (image * 255).round().to(torch.uint8))


def test_strings_are_spelt_by_the_alphabet() -> None:
    ids = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 1]])
    assert Tokens(ids, "ACGT").strings() == ["ACGT", "TTAC"]
    relaxed = torch.nn.functional.one_hot(ids, 4) * 0.6 + 0.1
    assert Tokens(relaxed, "ACGT").strings() == ["ACGT", "TTAC"]


def test_each_sample_is_written_to_a_file_of_its_own(tmp_path: Path) -> None:
    pictures = Images(torch.rand(2, 3, 4, 6, generator=stream(5)))
    assert pictures.write(tmp_path / "images") == ["000.png", "001.png"]
    for name, levels in zip(["000.png", "001.png"], pictures.uint8(), strict=True):
        seen = np.array(Image.open(tmp_path / "images" / name))
        assert torch.equal(torch.from_numpy(seen), levels)
    names = Tokens(torch.tensor([[0, 1], [3, 2]]), "ACGT").write(tmp_path / "tokens")
    assert [(tmp_path / "tokens" / name).read_text() for name in names] == ["AC", "TG"]
    (name,) = Vectors(torch.tensor([[0.5, -2.0]])).write(tmp_path / "vectors")
    assert (tmp_path / "vectors" / name).read_text() == "0.5 -2"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Images(torch.rand(3, 8, 8)), r"got \(3, 8, 8\)"),
        (lambda: Images(torch.rand(2, 1, 8, 8)), r"got \(2, 1, 8, 8\)"),
        (lambda: Images(torch.rand(2, 8, 8, 3)), r"got \(2, 8, 8, 3\)"),
        (lambda: Images(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)), r"got torch\.uint8"),
        (lambda: Tokens(torch.zeros(3), "ACGT"), r"\(B, L, 4\) weights, got \(3,\)"),
        (lambda: Tokens(torch.zeros(3, 5, 6), "ACGT"), r"got \(3, 5, 6\)"),
        (lambda: Vectors(torch.zeros(3)), r"got \(3,\)"),
    ],
)
def test_tensors_of_another_shape_or_type_are_refused(
    make: Callable[[], Samples], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_samples_move_with_everything_but_their_settings() -> None:
    moved = Tokens(torch.zeros(2, 3, dtype=torch.long), "AC").to("meta")
    assert moved.device.type == "meta" and moved.alphabet == "AC"
