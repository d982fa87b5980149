"""Each network against the same layers written out; the cascade on faces that are drawn here."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn_faces import drawn_faces
from torch import Tensor

from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.face_presence import FacePresence, _Cascade, _load
from diffreward.samples import Images, Videos

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "rewards"
Weights = dict[str, Tensor]


def real() -> str:
    folder = DATA / "image_models"
    if not (folder / "mtcnn_pnet.pt").is_file():
        pytest.skip(f"{folder} is not here")
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights under the official names."""
    path = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = _Cascade()
    parts = {"pnet": networks.first, "rnet": networks.second, "onet": networks.third}
    for name, network in parts.items():
        torch.save(network.state_dict(), path / f"{name}.pt")
    points = {"dense6_3.weight": torch.ones(10, 256), "dense6_3.bias": torch.ones(10)}
    torch.save({**networks.third.state_dict(), **points}, path / "onet.pt")
    return str(path)


def layer(w: Weights, place: int, x: Tensor) -> Tensor:
    x = F.conv2d(x, w[f"conv{place}.weight"], w[f"conv{place}.bias"])
    return F.prelu(x, w[f"prelu{place}.weight"])


def dense(w: Weights, place: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"dense{place}.weight"], w[f"dense{place}.bias"])


def columns_first(x: Tensor) -> Tensor:
    return torch.stack([row.permute(2, 1, 0).reshape(-1) for row in x])


def first(w: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    x = F.max_pool2d(layer(w, 1, x), 2, 2, ceil_mode=True)
    x = layer(w, 3, layer(w, 2, x))
    heads = (F.conv2d(x, w[f"conv4_{n}.weight"], w[f"conv4_{n}.bias"]) for n in (1, 2))
    face, box = heads
    return face.softmax(1)[:, 1], box


def second(w: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    for place in (1, 2):
        x = F.max_pool2d(layer(w, place, x), 3, 2, ceil_mode=True)
    x = F.prelu(dense(w, "4", columns_first(layer(w, 3, x))), w["prelu4.weight"])
    return dense(w, "5_1", x).softmax(1)[:, 1], dense(w, "5_2", x)


def third(w: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    for place, size in ((1, 3), (2, 3), (3, 2)):
        x = F.max_pool2d(layer(w, place, x), size, 2, ceil_mode=True)
    x = F.prelu(dense(w, "5", columns_first(layer(w, 4, x))), w["prelu5.weight"])
    return dense(w, "6_1", x).softmax(1)[:, 1], dense(w, "6_2", x)


def noise(n: int, side: int) -> Images:
    levels = torch.randint(256, (n, 3, side, side), generator=stream(n, side))
    return Images(levels.float() / 255)


@pytest.mark.parametrize(
    ("place", "forward", "side"), [(0, first, 31), (1, second, 24), (2, third, 48)]
)
def test_each_network_is_what_its_layers_say(folder: str, place: int, forward, side: int) -> None:
    network = [*_load(folder).children()][place]
    x = noise(2, side).pixels - 0.5
    face, box = forward(network.state_dict(), x)
    margin, moves = network(x)
    torch.testing.assert_close(margin.sigmoid(), face, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moves, box, rtol=1e-4, atol=1e-6)


# By facenet-pytorch 2.6.0 on the pixels of the test: the most likely cell of the first network, and
# what the second and the third say of two pictures.
GOLDEN = [[0.993244], [0.883102, 0.007888], [0.072891, 0.037028]]


def test_real_weights_see_what_they_see_in_facenet_pytorch() -> None:
    networks = _load(real()).children()
    for network, side, golden in zip(networks, (40, 24, 48), GOLDEN, strict=True):
        pixels = drawn_faces([(0.5, 0.5, 0.7), (0.4, 0.4, 0.5)], side).pixels
        faces = network(2 * pixels - 1)[0].sigmoid()
        found = faces.flatten().sort(descending=True).values[: len(golden)]
        torch.testing.assert_close(found, torch.tensor(golden), rtol=0, atol=1e-5)


def test_the_second_and_the_third_network_look_into_the_box(folder: str, tmp_path: Path) -> None:
    # Boxes stay where the first network sees them.
    weights = {name: torch.load(f"{folder}/{name}.pt") for name in ("pnet", "rnet", "onet")}
    for name, box in (("pnet", "conv4_2"), ("rnet", "dense5_2"), ("onet", "dense6_2")):
        for kind in ("weight", "bias"):
            weights[name][f"{box}.{kind}"].zero_()
        torch.save(weights[name], tmp_path / f"{name}.pt")
    # At faces of 12 pixels the pyramid begins with the image itself, of a pixel more.
    levels = noise(1, 14).pixels * 255
    cells = first(weights["pnet"], (F.interpolate(levels, (15, 15), mode="area") - 127.5) / 128)[0]
    row, column = divmod(int(cells.argmax()), cells.shape[2])
    expected = cells.max().log()
    inside = levels[:, :, 2 * row : 2 * row + 12, 2 * column : 2 * column + 12]
    for forward, name, side in ((second, "rnet", 24), (third, "onet", 48)):
        seen = F.interpolate(inside, (side, side), mode="area")
        expected = expected + forward(weights[name], (seen - 127.5) / 128)[0].log().sum()
    found = FacePresence(str(tmp_path), smallest=12, candidates=1)(Images(levels / 255), [""])
    torch.testing.assert_close(found, expected.reshape(1), rtol=1e-4, atol=1e-5)


FACES = [(0.5, 0.5, 0.55), (0.3, 0.6, 0.4), (0.7, 0.3, 0.3)]


def test_a_face_is_found_wherever_it_is() -> None:
    scores = FacePresence(real())(drawn_faces(FACES), [""] * 3)
    assert (scores <= 0).all()
    assert (scores > -0.2).all(), scores


def test_hair_and_skin_make_no_face() -> None:
    assert FacePresence(real())(drawn_faces(FACES[:1], ellipses=2), [""]).item() < -3


@pytest.mark.parametrize("name", ["hpsv2_demo_image.jpg", "imagereward_2.webp"])
def test_pictures_without_faces_score_low(name: str) -> None:
    from PIL import Image

    picture = Image.open(Path(real()).parent / "images" / name).convert("RGB").resize((256, 256))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    assert FacePresence(real())(Images(pixels), [""]).item() < -1


def test_following_the_gradient_brings_out_a_faint_face() -> None:
    reward, face = FacePresence(real()), drawn_faces(FACES[:1]).pixels
    pixels = 0.1 * face + 0.9 * face.mean((2, 3), keepdim=True)
    scores = []
    for _ in range(4):
        pixels.requires_grad_()
        scores.append(reward(Images(pixels), [""]))
        (gradient,) = torch.autograd.grad(scores[-1].sum(), pixels)
        pixels = pixels.detach() + gradient.sign() / 255
    assert scores[0].item() < -1
    assert scores[-1].item() > scores[0].item() / 2


def test_the_gradient_is_the_slope_between_neighbouring_images(folder: str) -> None:
    reward = FacePresence(folder, smallest=12)
    pixels = noise(2, 12).pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(Images(pixels), ["", ""]).sum(), pixels)
    chosen = torch.rand(pixels.shape, generator=stream(5)) < 0.2
    step = gradient.sign() * chosen / 255
    with torch.no_grad():
        above, below = (reward(Images(p), ["", ""]) for p in (pixels + step, pixels - step))
    expected = (gradient * step).sum((1, 2, 3))
    torch.testing.assert_close((above - below) / 2, expected, rtol=0.05, atol=1e-6)


def test_the_contract_is_kept(folder: str) -> None:
    check_reward(FacePresence(folder, candidates=4), noise(3, 48), [""] * 3)
    check_reward(FacePresence(real()), drawn_faces(FACES), [""] * 3)


def test_copies_score_alike_and_carry_no_networks(folder: str) -> None:
    reward = FacePresence(folder)
    scores = reward(noise(2, 32), ["", ""])
    stored = pickle.dumps(reward)
    assert len(stored) < 10_000
    assert torch.equal(pickle.loads(stored)(noise(2, 32), ["", ""]), scores)


def test_what_does_not_fit_is_reported_at_once(folder: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"0 files \*pnet\.pt, expected one"):
        FacePresence(str(tmp_path))
    with pytest.raises(ValueError, match="both are at least 1"):
        FacePresence(folder, candidates=0)
    with pytest.raises(ValueError, match="faces are 20 pixels or more"):
        FacePresence(folder)(noise(1, 16), [""])
    with pytest.raises(TypeError, match="scores Images"):
        FacePresence(folder)(Videos(torch.zeros(1, 2, 3, 32, 32)), [""])
