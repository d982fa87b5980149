import gzip
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffreward.rewards.digit_alignment import DigitAlignment, load_classifier
from diffreward.samples import Images

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "assets/digits-classifier"
MNIST = ROOT / "../shared/data/mnist"
RED, BLUE, YELLOW = (0.87, 0.08, 0.10), (0.10, 0.20, 0.88), (0.98, 0.92, 0.15)


@pytest.fixture
def alignment() -> DigitAlignment:
    return DigitAlignment(str(FOLDER))


def paint(mask: Tensor, ink: Sequence[float], ground: Sequence[float]) -> Tensor:
    """Blend two colours by masks (B, H, W) into images (B, 3, H, W)."""
    coverage = mask[:, None]
    first, second = (torch.tensor(colour)[:, None, None] for colour in (ink, ground))
    return second * (1 - coverage) + first * coverage


def bar(size: int = 32) -> Tensor:
    """Draw an upright stroke: a one, whatever the handwriting."""
    mask = torch.zeros(1, size, size)
    mask[:, size * 7 // 32 : size * 26 // 32, size * 15 // 32 : size * 18 // 32] = 1
    return mask


def test_a_bar_is_a_one_in_its_colours(alignment: DigitAlignment) -> None:
    pixels = paint(bar(), RED, BLUE).repeat(4, 1, 1, 1)
    prompts = [
        "a red one on a blue background",
        "a red eight on a blue background",
        "a green one on a blue background",
        "A red one on an orange background",
    ]
    parts = alignment.parts(Images(pixels), prompts)
    assert parts["all"].tolist() == [1, 0, 0, 0]
    assert parts["digit"].tolist() == [1, 0, 1, 1]
    assert parts["ink"].tolist() == [1, 1, 0, 1]
    assert parts["ground"].tolist() == [1, 1, 1, 0]
    assert parts["all"].dtype == torch.float32


def test_one_part_can_be_asked_for(alignment: DigitAlignment) -> None:
    samples = Images(paint(bar(), RED, BLUE))
    prompts = ["a red eight on a blue background"]
    assert alignment(samples, prompts).tolist() == [0]
    assert DigitAlignment(str(FOLDER), part="ink")(samples, prompts).tolist() == [1]


def test_other_sizes_are_resized(alignment: DigitAlignment) -> None:
    samples = Images(paint(bar(128), YELLOW, BLUE))
    assert alignment(samples, ["a yellow one on a blue background"]).tolist() == [1]


def test_pixels_may_require_a_gradient(alignment: DigitAlignment) -> None:
    pixels = paint(bar(), RED, BLUE).requires_grad_()
    reward = alignment(Images(pixels), ["a red one on a blue background"])
    assert not reward.requires_grad


@pytest.mark.parametrize(
    "prompt",
    ["", "a cat", "a pink one on a blue background", "a red one on a blue wall", "red one on blue"],
)
def test_a_foreign_prompt_is_named(alignment: DigitAlignment, prompt: str) -> None:
    with pytest.raises(ValueError, match=repr(prompt)):
        alignment(Images(torch.zeros(1, 3, 32, 32)), [prompt])


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match="'colour'"):
        DigitAlignment(str(FOLDER), part="colour")  # type: ignore[arg-type]


def test_a_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    alignment = DigitAlignment(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="train_classifier"):
        alignment(Images(torch.zeros(1, 3, 32, 32)), ["a red one on a blue background"])


def test_the_network_is_loaded_once(
    alignment: DigitAlignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, prompts = Images(paint(bar(), RED, BLUE)), ["a red one on a blue background"]
    alignment(samples, prompts)
    monkeypatch.setattr("diffreward.rewards.digit_alignment.load_classifier", None)
    assert alignment(samples, prompts).tolist() == [1]


def test_bundled_prompts_are_understood() -> None:
    vocabulary = load_classifier(FOLDER).vocabulary
    seen, held_out = (
        (ROOT / f"assets/prompts/digits_{kind}.txt").read_text().splitlines()
        for kind in ("train", "heldout")
    )
    assert len({vocabulary.parse(prompt) for prompt in [*seen, *held_out]}) == 560


def test_real_digits_are_recognised(alignment: DigitAlignment) -> None:
    if not MNIST.is_dir():
        pytest.skip(f"no MNIST test set in {MNIST}")
    with gzip.open(MNIST / "t10k-images-idx3-ubyte.gz") as stream:
        images = torch.frombuffer(bytearray(stream.read()[16:]), dtype=torch.uint8)
    with gzip.open(MNIST / "t10k-labels-idx1-ubyte.gz") as stream:
        labels = list(stream.read()[8:])
    masks = torch.nn.functional.pad(images.reshape(-1, 28, 28)[:500].float() / 255, (2, 2, 2, 2))
    words = load_classifier(FOLDER).vocabulary.digits
    prompts = [f"a yellow {words[label]} on a blue background" for label in labels[:500]]
    assert alignment(Images(paint(masks, YELLOW, BLUE)), prompts).mean() > 0.97
