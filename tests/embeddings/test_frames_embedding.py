from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from diffreward.embeddings.frames import EachFrame, frames_and_prompts
from diffreward.random import stream
from diffreward.samples import Images, Samples, Videos, images

CLIPS = Videos(torch.rand(2, 5, 3, 4, 4, generator=stream(0)))


def two_rows(samples: Samples, prompts: Sequence[str]) -> Tensor:
    """Two rows per image: the means of its channels, and the length of its prompt thrice."""
    means = images(samples).mean((2, 3))
    lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
    return torch.stack([means, lengths[:, None].expand(-1, 3)], 1)


@pytest.mark.parametrize("every", [1, 2, 7])
def test_the_rows_of_a_video_are_those_of_its_frames(every: int) -> None:
    rows = EachFrame(two_rows, every)(CLIPS, ["a", "abc"])
    for b, prompt in enumerate(["a", "abc"]):
        frames = [CLIPS.frames[b, f][None] for f in range(0, 5, every)]
        expected = torch.cat([two_rows(Images(frame), [prompt])[0] for frame in frames])
        torch.testing.assert_close(rows[b], expected)


def test_frames_come_with_the_prompt_of_their_video() -> None:
    pictures, prompts = frames_and_prompts(CLIPS, ["a", "b"], every=3)
    assert prompts == ["a", "a", "b", "b"]
    assert torch.equal(pictures.pixels, CLIPS.frames[:, [0, 3]].flatten(0, 1))


def test_rows_carry_the_gradient_of_the_frames_taken() -> None:
    frames = CLIPS.frames.clone().requires_grad_()
    EachFrame(two_rows, every=2)(Videos(frames), ["", ""]).sum().backward()
    assert frames.grad is not None
    # Each channel's mean counts once: a pixel of the 16 adds a sixteenth.
    assert frames.grad[:, ::2].unique().tolist() == [1 / 16]
    assert frames.grad[:, 1::2].unique().tolist() == [0]


def test_images_are_no_videos() -> None:
    with pytest.raises(TypeError, match="scores Videos"):
        EachFrame(two_rows)(Images(torch.zeros(2, 3, 4, 4)), ["", ""])
    with pytest.raises(ValueError, match="every is at least 1"):
        EachFrame(two_rows, every=0)
