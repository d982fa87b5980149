import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_faces import drawn_faces
from torch import Tensor

from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.face_presence import FacePresence
from diffreward.rewards.ultra_light_face_presence import (
    UltraLightFacePresence,
    _Detector,
    _load,
)
from diffreward.samples import Images, Videos

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "rewards"
FACES = [(0.5, 0.5, 0.55), (0.3, 0.6, 0.4), (0.7, 0.3, 0.3)]


def real() -> str:
    file = DATA / "image_models" / "ultralight_face_version-RFB-320.pth"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    return str(file)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights under the official names."""
    path = tmp_path_factory.mktemp("weights") / "faces.pth"
    state = _Detector().state_dict()
    for name, tensor in state.items():
        if tensor.ndim == 4:  # a convolution, of a size that keeps what it is given
            drawn = torch.randn(tensor.shape, generator=stream(0, name))
            state[name] = drawn * (2 / tensor[0].numel()) ** 0.5
    torch.save({**state, "regression_headers.0.0.bias": torch.zeros(64)}, path)
    return str(path)


def noise(n: int) -> Images:
    levels = torch.randint(256, (n, 3, 60, 80), generator=stream(n))
    return Images(levels.float() / 255)


def test_real_weights_see_what_they_see_in_the_official_network() -> None:
    # By `create_Mb_Tiny_RFB_fd` of the repository on these pixels: the likeliest of 4420 places,
    # and the mean over all.
    grey = torch.full((3, 3, 240, 80), 0.5)
    pixels = torch.cat([drawn_faces(FACES, 240).pixels, grey], 3)
    with torch.no_grad():
        found = _load(real()).eval()(((pixels * 255).round() - 127) / 128).sigmoid()
    assert found.shape == (3, 4420)
    likeliest, mean = [0.997388, 0.997860, 0.999125], [0.04266589, 0.04220461, 0.04136538]
    torch.testing.assert_close(found.amax(1), torch.tensor(likeliest), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.mean(1), torch.tensor(mean), rtol=0, atol=1e-5)


def test_faces_score_high_and_skin_does_not() -> None:
    reward = UltraLightFacePresence(real())
    assert (reward(drawn_faces(FACES, 240), [""] * 3) > -0.02).all()
    assert (reward(drawn_faces(FACES, 240, ellipses=2), [""] * 3) < -2).all()


def test_it_is_not_deceived_as_the_first_judge_is() -> None:
    from PIL import Image

    file = DATA / "images" / "imagereward_2.webp"
    first, second = FacePresence(str(Path(real()).parent)), UltraLightFacePresence(real())
    picture = Image.open(file).convert("RGB").resize((128, 128))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    for _ in range(12):
        pixels.requires_grad_()
        (gradient,) = torch.autograd.grad(first(Images(pixels), [""]).sum(), pixels)
        pixels = (pixels.detach() + gradient.sign() / 255).clamp(0, 1)
    # The landscape is still one, but the first judge is sure of a face.
    assert first(Images(pixels), [""]).item() > -0.1
    assert second(Images(pixels), [""]).item() < -0.5


def test_the_gradient_is_the_slope_between_neighbouring_images(weights: str) -> None:
    reward = UltraLightFacePresence(weights)
    # Of the size that the network takes, so that one level is one level to it too.
    pixels: Tensor = torch.nn.functional.interpolate(noise(1).pixels, (240, 320))
    pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(Images(pixels), [""]).sum(), pixels)
    # One level, the least that counts, in few pixels: a short step.
    step = gradient.sign() * (torch.rand(pixels.shape, generator=stream(5)) < 0.02) / 255
    with torch.no_grad():
        above, below = (reward(Images(p), [""]) for p in (pixels + step, pixels - step))
    expected = (gradient * step).sum((1, 2, 3))
    assert expected.item() > 1e-6
    torch.testing.assert_close((above - below) / 2, expected, rtol=0.1, atol=0)


def test_the_contract_is_kept(weights: str) -> None:
    check_reward(UltraLightFacePresence(weights), noise(3), [""] * 3)


def test_copies_score_alike_and_carry_no_network(weights: str) -> None:
    reward = UltraLightFacePresence(weights)
    scores = reward(noise(2), ["", ""])
    stored = pickle.dumps(reward)
    assert len(stored) < 10_000
    assert torch.equal(pickle.loads(stored)(noise(2), ["", ""]), scores)


def test_what_does_not_fit_is_reported(weights: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"version-RFB-320\.pth"):
        UltraLightFacePresence(str(tmp_path / "nowhere.pth"))
    with pytest.raises(TypeError, match="scores Images"):
        UltraLightFacePresence(weights)(Videos(torch.zeros(1, 2, 3, 32, 32)), [""])
