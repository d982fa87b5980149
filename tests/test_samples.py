import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffreward.random import stream
from diffreward.samples import (
    Audio,
    Images,
    Samples,
    Texts,
    Tokens,
    Vectors,
    Videos,
    audio,
    concatenate,
    images,
    texts,
    tokens,
    vectors,
    videos,
)


def a_batch_of(kind: str) -> Samples:
    return {
        "images": Images(torch.rand(4, 3, 6, 5, generator=stream(0))),
        "videos": Videos(torch.rand(4, 2, 3, 6, 5, generator=stream(4)), fps=24),
        "audio": Audio(torch.rand(4, 2, 9, generator=stream(5)) * 2 - 1, rate=100),
        "texts": Texts(("a", "b b", "", "d")),
        "tokens": Tokens(torch.randint(4, (4, 7), generator=stream(1)), "ACGT"),
        "relaxed tokens": Tokens(torch.rand(4, 7, 4, generator=stream(2)), "ACGT"),
        "vectors": Vectors(torch.randn(4, 2, generator=stream(3))),
    }[kind]


KINDS = ["images", "videos", "audio", "texts", "tokens", "relaxed tokens", "vectors"]
ACCESS: dict[str, Callable[[Samples], Any]] = {
    "images": images,
    "videos": videos,
    "audio": audio,
    "texts": texts,
    "tokens": tokens,
    "relaxed tokens": tokens,
    "vectors": vectors,
}


def listed(kind: str, samples: Samples) -> list[Any]:
    content = ACCESS[kind](samples)
    return content.tolist() if isinstance(content, torch.Tensor) else list(content)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (torch.tensor([2, 0, 0]), [2, 0, 0]),
        (torch.tensor([-1]), [3]),
        (torch.tensor([False, True, False, True]), [1, 3]),
        (slice(1, 3), [1, 2]),
        (slice(0, 0), []),
    ],
)
def test_rows_are_chosen_as_from_a_tensor(kind: str, rows: Any, expected: list[int]) -> None:
    samples = a_batch_of(kind)
    chosen = samples[rows]
    assert type(chosen) is type(samples)
    assert listed(kind, chosen) == [listed(kind, samples)[i] for i in expected]
    assert len(chosen) == len(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_joined_to_the_whole(kind: str) -> None:
    samples = a_batch_of(kind)
    whole = concatenate([samples[:1], samples[1:3], samples[3:]])
    assert type(whole) is type(samples)
    assert listed(kind, whole) == listed(kind, samples)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            [Videos(torch.rand(1, 2, 3, 4, 4), fps=fps) for fps in (8, 24)],
            r"one fps, got \[8, 24\]",
        ),
        ([Audio(torch.zeros(1, 1, 3), rate=rate) for rate in (2, 3)], r"one rate, got \[2, 3\]"),
        ([Tokens(torch.zeros(1, 3), one) for one in ("AC", "GT")], "one alphabet, got"),
    ],
)
def test_parts_that_differ_in_what_holds_for_a_batch_are_not_joined(
    parts: list[Samples], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        concatenate(parts)


def test_parts_of_two_kinds_are_not_joined() -> None:
    with pytest.raises(TypeError, match=r"\['Texts', 'Vectors'\]"):
        concatenate([a_batch_of("vectors"), a_batch_of("texts")])


def test_no_parts_make_no_whole() -> None:
    with pytest.raises(ValueError, match="zero batches"):
        concatenate([])


def test_what_holds_for_a_batch_is_kept_when_rows_are_chosen_or_joined() -> None:
    for kind, setting in {"tokens": "alphabet", "videos": "fps", "audio": "rate"}.items():
        samples = a_batch_of(kind)
        for other in (samples[:2], concatenate([samples, samples[:1]])):
            assert vars(other)[setting] == vars(samples)[setting]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("images", "tokens"),
        ("tokens", "vectors"),
        ("videos", "images"),
        ("audio", "texts"),
        ("texts", "audio"),
    ],
)
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
    names = Texts(("mañana", "two\nlines")).write(tmp_path / "texts")
    assert names == ["000.txt", "001.txt"]
    written = [(tmp_path / "texts" / name).read_text(encoding="utf-8") for name in names]
    assert written == ["mañana", "two\nlines"]


def test_a_video_is_written_with_all_its_frames_at_its_speed(tmp_path: Path) -> None:
    # Black, white and red keep their levels in the palette of a GIF.
    colours = torch.tensor([[[0, 0, 0], [1, 1, 1], [1, 0, 0]], [[1, 1, 1], [1, 0, 0], [0, 0, 0]]])
    clips = Videos(colours[..., None, None].expand(2, 3, 3, 4, 6).float(), fps=5)
    assert clips.uint8().shape == (2, 3, 4, 6, 3)
    assert clips.write(tmp_path) == ["000.gif", "001.gif"]
    for name, levels in zip(["000.gif", "001.gif"], clips.uint8(), strict=True):
        with Image.open(tmp_path / name) as film:
            assert film.n_frames == 3
            for i in range(3):
                film.seek(i)
                assert film.info["duration"] == 200
                assert np.array_equal(np.array(film.convert("RGB")), levels[i].numpy())


@pytest.mark.parametrize(("fps", "duration"), [(8, 120), (24, 40), (1000, 10)])
def test_the_speed_of_a_video_is_rounded_to_what_a_gif_can_say(
    fps: float, duration: int, tmp_path: Path
) -> None:
    frames = torch.arange(2).reshape(1, 2, 1, 1, 1).expand(1, 2, 3, 2, 2).float()
    Videos(frames, fps).write(tmp_path)
    with Image.open(tmp_path / "000.gif") as film:
        assert film.info["duration"] == duration


def test_a_sound_is_written_with_16_bits_and_its_channels_in_turn(tmp_path: Path) -> None:
    left, right = [0.0, 1.0, -1.0], [0.5, 2.0, -3.0]
    sounds = Audio(torch.tensor([[left, right], [right, left]]).requires_grad_(), rate=16000)
    assert sounds.write(tmp_path) == ["000.wav", "001.wav"]
    with wave.open(str(tmp_path / "000.wav")) as sound:
        assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (2, 2, 16000)
        levels = np.frombuffer(sound.readframes(3), "<i2").tolist()
    assert levels == [0, 16384, 32767, 32767, -32767, -32767]
    with wave.open(str(tmp_path / "001.wav")) as sound:
        assert np.frombuffer(sound.readframes(3), "<i2").tolist()[:2] == [16384, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Images(torch.rand(3, 8, 8)), r"got \(3, 8, 8\)"),
        (lambda: Images(torch.rand(2, 1, 8, 8)), r"got \(2, 1, 8, 8\)"),
        (lambda: Images(torch.rand(2, 8, 8, 3)), r"got \(2, 8, 8, 3\)"),
        (lambda: Images(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)), r"got torch\.uint8"),
        (lambda: Videos(torch.rand(2, 3, 8, 8)), r"\(B, F, 3, H, W\), got \(2, 3, 8, 8\)"),
        (lambda: Videos(torch.rand(2, 3, 5, 8, 8)), r"got \(2, 3, 5, 8, 8\)"),
        (lambda: Videos(torch.zeros(2, 5, 3, 8, 8).int()), r"got torch\.int32"),
        (lambda: Videos(torch.rand(2, 5, 3, 8, 8), fps=0), r"greater than 0, got 0"),
        (lambda: Audio(torch.rand(2, 8), rate=100), r"\(B, C, T\), got \(2, 8\)"),
        (lambda: Audio(torch.zeros(2, 1, 8).short(), rate=100), r"got torch\.int16"),
        (lambda: Audio(torch.rand(2, 1, 8), rate=0), r"at least 1 per second, got 0"),
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


def test_texts_are_where_strings_are() -> None:
    samples = a_batch_of("texts")
    assert samples.device.type == "cpu"
    assert samples.to("meta") == samples


@pytest.mark.parametrize(
    ("strings", "got"), [(["a"], "got list of str"), (("a", 1), "got tuple of int, str")]
)
def test_texts_of_anything_else_are_refused(strings: Any, got: str) -> None:
    with pytest.raises(TypeError, match=f"tuple of str, {got}"):
        Texts(strings)
