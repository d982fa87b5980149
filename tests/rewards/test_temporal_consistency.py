import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.temporal_consistency import TemporalConsistency
from diffreward.samples import Images, Samples, Videos, images


def means(samples: Samples, prompts: Sequence[str]) -> Tensor:
    """One row per image: the means of its channels."""
    return images(samples).mean((2, 3))[:, None]


def halves(samples: Samples, prompts: Sequence[str]) -> Tensor:
    """Two rows per image: the means of its upper and its lower half."""
    upper, lower = images(samples).chunk(2, 2)
    return torch.stack([upper.mean((2, 3)), lower.mean((2, 3))], 1)


def noise(n: int = 3) -> Videos:
    return Videos(torch.rand(n, 4, 3, 6, 6, generator=stream(0)))


def painted(colours: list[list[float]]) -> Videos:
    """One video of a frame per colour."""
    return Videos(torch.tensor(colours)[None, :, :, None, None].expand(-1, -1, -1, 4, 4))


@pytest.mark.parametrize("embedding", [means, halves])
def test_a_still_video_is_consistent(embedding) -> None:
    still = Videos(noise().frames[:, :1].expand(-1, 4, -1, -1, -1))
    torch.testing.assert_close(TemporalConsistency(embedding)(still, [""] * 3), torch.ones(3))


def test_the_score_is_the_mean_cosine_of_neighbours() -> None:
    # Angles of 90, 45 and 0 degrees; the first and the last frame are not compared.
    video = painted([[1, 0, 0], [0, 0.5, 0], [0.5, 0.5, 0], [1, 1, 0]])
    expected = torch.tensor([(0 + math.sqrt(0.5) + 1) / 3])
    torch.testing.assert_close(TemporalConsistency(means)(video, [""]), expected)


def test_several_rows_are_compared_each_with_its_own() -> None:
    frames = torch.zeros(1, 2, 3, 4, 4)
    frames[0, :, 0, :2] = 1  # the upper half stays red
    frames[0, 0, 1, 2:] = 1  # the lower one turns from green
    frames[0, 1, 2, 2:] = 1  # to blue
    found = TemporalConsistency(halves)(Videos(frames), [""])
    torch.testing.assert_close(found, torch.tensor([0.5]))


def test_the_gradient_makes_neighbours_more_alike() -> None:
    reward, frames = TemporalConsistency(means), noise().frames.requires_grad_()
    before = reward(Videos(frames), [""] * 3)
    (gradient,) = torch.autograd.grad(before.sum(), frames)
    after = reward(Videos(frames + 10 * gradient), [""] * 3)
    assert (after > before).all()


def test_the_contract_is_kept() -> None:
    check_reward(TemporalConsistency(halves), noise(), [""] * 3)


def test_what_has_no_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="single frame"):
        TemporalConsistency(means)(Videos(torch.zeros(1, 1, 3, 4, 4)), [""])
    with pytest.raises(TypeError, match="scores Videos"):
        TemporalConsistency(means)(Images(torch.zeros(1, 3, 4, 4)), [""])
