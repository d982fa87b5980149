import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.frames import PerFrame
from diffreward.samples import Images, Samples, Videos, images


def brightness(samples: Samples, prompts: Sequence[str]) -> Tensor:
    return images(samples).mean((1, 2, 3))


def greys(*levels: list[float]) -> Videos:
    """A video per list, with a grey frame per level."""
    return Videos(torch.tensor(levels)[:, :, None, None, None].expand(-1, -1, 3, 4, 4))


VIDEOS = greys([0.1, 0.5, 0.3], [0.2, 0.2, 0.8])
SOFT = [
    -math.log(sum(math.exp(-level) for level in levels) / 3)
    for levels in ([0.1, 0.5, 0.3], [0.2, 0.2, 0.8])
]


@pytest.mark.parametrize(
    ("pooling", "expected"), [("mean", [0.3, 0.4]), ("min", [0.1, 0.2]), ("softmin", SOFT)]
)
def test_scores_of_frames_are_pooled(pooling: str, expected: list[float]) -> None:
    found = PerFrame(brightness, pooling)(VIDEOS, ["", ""])
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize(("temperature", "like"), [(1e-3, "min"), (1e3, "mean")])
def test_the_soft_least_is_between_the_least_and_the_mean(temperature: float, like: str) -> None:
    soft = PerFrame(brightness, "softmin", temperature=temperature)(VIDEOS, ["", ""])
    expected = PerFrame(brightness, like)(VIDEOS, ["", ""])
    torch.testing.assert_close(soft, expected, rtol=0, atol=2e-3)


def test_some_frames_may_be_left_out() -> None:
    found = PerFrame(brightness, every=2)(VIDEOS, ["", ""])
    torch.testing.assert_close(found, torch.tensor([0.2, 0.5]))


def test_all_frames_come_in_one_call_with_the_prompt_of_their_video() -> None:
    calls = []

    def lengths(samples: Samples, prompts: Sequence[str]) -> Tensor:
        calls.append(list(prompts))
        return torch.tensor([float(len(prompt)) for prompt in prompts])

    assert PerFrame(lengths)(VIDEOS, ["a", "abc"]).tolist() == [1, 3]
    assert calls == [["a"] * 3 + ["abc"] * 3]


@pytest.mark.parametrize("pooling", ["mean", "min", "softmin"])
def test_a_frame_without_a_score_leaves_its_video_without_one(pooling: str) -> None:
    def not_too_bright(samples: Samples, prompts: Sequence[str]) -> Tensor:
        scores = brightness(samples, prompts)
        return scores.masked_fill(scores > 0.7, torch.nan)

    found = PerFrame(not_too_bright, pooling)(VIDEOS, ["", ""])
    assert found.isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    ("pooling", "shares"),
    [("mean", [1 / 3] * 3), ("min", [1, 0, 0]), ("softmin", [0.4018, 0.2693, 0.3289])],
)
def test_the_gradient_goes_to_the_frames_that_count(pooling: str, shares: list[float]) -> None:
    # Those of the soft least are the softmax of -0.1, -0.5 and -0.3.
    frames = VIDEOS.frames.clone().requires_grad_()
    PerFrame(brightness, pooling)(Videos(frames), ["", ""]).sum().backward()
    assert frames.grad is not None
    found = frames.grad[0].sum((1, 2, 3))
    torch.testing.assert_close(found, torch.tensor(shares, dtype=torch.float32), rtol=0, atol=1e-4)


def test_the_contract_is_kept() -> None:
    samples = Videos(torch.rand(3, 4, 3, 5, 5, generator=stream(0)))
    check_reward(PerFrame(brightness, "softmin"), samples, [""] * 3)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TypeError, match="scores Videos"):
        PerFrame(brightness)(Images(torch.zeros(1, 3, 4, 4)), [""])
    with pytest.raises(ValueError, match="pooling is one of"):
        PerFrame(brightness, "median")
    with pytest.raises(ValueError, match="expected at least 1, and above 0"):
        PerFrame(brightness, temperature=0)
