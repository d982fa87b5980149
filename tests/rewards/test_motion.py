import pytest
import torch

from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.motion import Motion
from diffreward.samples import Images, Videos


def noise(n: int = 3) -> Videos:
    return Videos(torch.rand(n, 4, 3, 5, 6, generator=stream(0)))


def fade(fps: int, seconds: float = 1.0) -> Videos:
    """From black to white, at one speed."""
    levels = torch.linspace(0, 1, round(fps * seconds) + 1)
    return Videos(levels[None, :, None, None, None].expand(1, -1, 3, 4, 4), fps)


def test_a_still_video_has_no_motion() -> None:
    still = Videos(noise().frames[:, :1].expand(-1, 4, -1, -1, -1))
    assert Motion()(still, [""] * 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("fps", [4, 8, 30])
def test_a_fade_within_a_second_has_motion_one_at_every_frame_rate(fps: int) -> None:
    torch.testing.assert_close(Motion()(fade(fps), [""]), torch.ones(1))


def test_motion_grows_with_the_square_of_speed() -> None:
    torch.testing.assert_close(Motion()(fade(8, 0.5), [""]), torch.tensor([4.0]))


def test_one_pixel_that_jumps_counts_by_its_share() -> None:
    frames = torch.zeros(1, 3, 3, 2, 2)
    frames[0, 1, 0, 0, 0] = 0.5
    # Two differences of a half among 2 x 3 x 4 of them.
    expected = torch.tensor([2 * 0.5**2 / 24 * 10**2])
    torch.testing.assert_close(Motion()(Videos(frames, fps=10), [""]), expected)


@pytest.mark.parametrize(("target", "expected"), [(1.0, 0.0), (0.25, -0.75), (3.0, -2.0)])
def test_with_a_target_the_score_is_minus_the_distance(target: float, expected: float) -> None:
    torch.testing.assert_close(Motion(target)(fade(8), [""]), torch.tensor([expected]))


@pytest.mark.parametrize("target", [None, 5.0])
def test_the_gradient_is_that_of_finite_differences(target: float | None) -> None:
    frames = noise(1).frames.double().requires_grad_()

    def scores(frames: torch.Tensor) -> torch.Tensor:
        return Motion(target)(Videos(frames, fps=2.0), [""])

    (gradient,) = torch.autograd.grad(scores(frames).sum(), frames)
    direction = torch.randn(frames.shape, generator=stream(1)).double()
    with torch.no_grad():
        rise = scores(frames + 1e-2 * direction) - scores(frames - 1e-2 * direction)
    torch.testing.assert_close(
        rise.double().sum() / 2e-2, (gradient * direction).sum(), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("target", [None, 2.0])
def test_the_contract_is_kept(target: float | None) -> None:
    check_reward(Motion(target), noise(), [""] * 3)


def test_what_has_no_motion_is_refused() -> None:
    with pytest.raises(ValueError, match="single frame"):
        Motion()(Videos(torch.zeros(1, 1, 3, 4, 4)), [""])
    with pytest.raises(TypeError, match="scores Videos"):
        Motion()(Images(torch.zeros(1, 3, 4, 4)), [""])
    with pytest.raises(ValueError, match="at least 0"):
        Motion(-1.0)
