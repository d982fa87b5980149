import copy
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreward.random import stream
from diffreward.rewards.aesthetic import Aesthetic
from diffreward.samples import Images, Tokens

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "rewards" / "aesthetic"

# The heads on the embeddings of LAION-AI/aesthetic-predictor, one per rating from 0 to 9.
GOLDEN = {
    "sac+logos+ava1-l14-linearMSE.pth": [
        *(1.65548, 2.35927, 3.06982, 3.67245, 4.23801),
        *(4.70102, 5.07305, 5.36536, 5.57666, 5.74676),
    ],
    "ava+logos-l14-linearMSE.pth": [
        *(4.51263, 4.47625, 4.49188, 4.59587, 4.70541),
        *(4.84335, 5.00393, 5.14789, 5.2309, 5.2664),
    ],
    "sa_0_4_vit_l_14_linear.pth": [
        *(-2.4579, -0.1379, 1.8951, 3.5849, 5.0997),
        *(6.4701, 7.787, 9.048, 10.2264, 11.3044),
    ],
}


def official(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


@pytest.mark.parametrize("name", GOLDEN)
def test_official_embeddings_get_their_official_ratings(name: str) -> None:
    reward = Aesthetic(str(official(DATA / name)))
    folder = official(DATA / "vit_l_14_embeddings")
    rows = [np.load(folder / f"rating{i}.npy").reshape(1, 768) for i in range(10)]
    embeddings = torch.from_numpy(np.concatenate(rows)).float()
    expected = torch.tensor(GOLDEN[name])
    torch.testing.assert_close(reward.score_embeddings(embeddings), expected, rtol=0, atol=1e-4)


def test_the_range_of_version_2_is_known() -> None:
    # |w| = 17.996 and b = 5.2366.
    reward = Aesthetic(str(official(DATA / "sac+logos+ava1-l14-linearMSE.pth")))
    embedding = torch.eye(768).requires_grad_()
    reward.score_embeddings(embedding).sum().backward()
    best = reward.score_embeddings(torch.eye(768)) - 5.2366
    torch.testing.assert_close(best.norm(), torch.tensor(17.996), rtol=0, atol=1e-3)


def stack(sizes: list[int], dropout: bool = False) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers.append(nn.Linear(a, b))
            if dropout and len(layers) < 7:
                layers.append(nn.Dropout(0.2))
    return nn.Sequential(*layers).eval()


@pytest.fixture
def head(tmp_path: Path) -> str:
    path = tmp_path / "head.pth"
    torch.save(stack([8, 1]).state_dict(), path)
    return str(path)


@pytest.mark.parametrize(
    ("sizes", "dropout"),
    [([8, 1], False), ([8, 5, 3, 1], False), ([8, 7, 6, 5, 4, 1], True)],
)
def test_a_stack_of_linear_layers_is_scored_as_the_stack_is(
    tmp_path: Path, sizes: list[int], dropout: bool
) -> None:
    layers = stack(sizes, dropout)
    torch.save({f"layers.{k}": v for k, v in layers.state_dict().items()}, tmp_path / "head.pth")
    embeddings = torch.randn(6, 8, generator=stream(0))
    scores = Aesthetic(str(tmp_path / "head.pth")).score_embeddings(embeddings)
    with torch.no_grad():
        expected = layers(F.normalize(embeddings, dim=-1))[:, 0]
    torch.testing.assert_close(scores, expected)
    assert scores.shape == (6,)


def broken_heads() -> dict[str, dict[str, Tensor]]:
    relu = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 1))
    return {
        "activations": relu.state_dict(),
        "five outputs": nn.Linear(8, 5).state_dict(),
        "convolution": nn.Conv2d(8, 1, 3).state_dict(),
        "no bias": nn.Linear(8, 1, bias=False).state_dict(),
        "norm": nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).state_dict(),
        "layers that do not fit": {
            **{f"0.{k}": v for k, v in nn.Linear(8, 4).state_dict().items()},
            **{f"1.{k}": v for k, v in nn.Linear(5, 1).state_dict().items()},
        },
        "nothing": {},
    }


@pytest.mark.parametrize("fault", broken_heads())
def test_heads_that_are_not_affine_are_refused(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "head.pth"
    torch.save(broken_heads()[fault], path)
    with pytest.raises(ValueError, match=r"head\.pth is not a stack of linear layers"):
        Aesthetic(str(path))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    path = tmp_path_factory.mktemp("backbone")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        CLIPVisionModelWithProjection(config).save_pretrained(path)
    return str(path)


def noise(n: int, height: int, width: int) -> Images:
    levels = torch.randint(50, 200, (n, 3, height, width), generator=stream(n, height, width))
    return Images(levels.float() / 255)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 70)])
def test_images_are_rated_as_by_the_parts_of_transformers(
    head: str, backbone: str, height: int, width: int
) -> None:
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    samples = noise(2, height, width)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    inputs = CLIPImageProcessorPil(**size)(samples.pil(), return_tensors="pt")
    with torch.no_grad():
        tower = CLIPVisionModelWithProjection.from_pretrained(backbone).eval()
        embeddings = F.normalize(tower(**inputs).image_embeds, dim=-1)
        state = torch.load(head, weights_only=True)
        expected = F.linear(embeddings, state["0.weight"], state["0.bias"])[:, 0]
    scores = Aesthetic(head, backbone)(samples, ["", ""])
    assert not scores.requires_grad
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_the_gradient_is_the_slope_between_neighbouring_images(head: str, backbone: str) -> None:
    # Images of the model's own size are not resized, so the score is smooth from level to level.
    reward = Aesthetic(head, backbone)
    pixels = noise(2, 32, 32).pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(Images(pixels), ["", ""]).sum(), pixels)
    step = gradient.sign() / 255
    with torch.no_grad():
        rise = reward(Images(pixels + step), ["", ""]) - reward(Images(pixels - step), ["", ""])
    torch.testing.assert_close(rise / 2, (gradient * step).sum((1, 2, 3)), rtol=0.05, atol=1e-5)


def test_copies_score_alike_and_carry_no_tower(head: str, backbone: str) -> None:
    reward = Aesthetic(head, backbone)
    before = torch.get_rng_state()
    scores = reward(noise(2, 32, 32), ["", ""])
    assert torch.equal(torch.get_rng_state(), before)
    stored = pickle.dumps(reward)
    assert len(stored) < 10_000
    for copied in (pickle.loads(stored), copy.deepcopy(reward)):
        assert torch.equal(copied(noise(2, 32, 32), ["", ""]), scores)


def test_a_head_for_another_backbone_is_refused(tmp_path: Path, backbone: str) -> None:
    torch.save(nn.Linear(12, 1).state_dict(), tmp_path / "head.pth")
    with pytest.raises(ValueError, match="embeddings of 12 numbers, got 8"):
        Aesthetic(str(tmp_path / "head.pth"), backbone)(noise(2, 32, 32), ["", ""])


def test_files_that_do_not_exist_are_reported_at_once(head: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no head at .*improved-aesthetic-predictor"):
        Aesthetic(str(tmp_path / "nowhere.pth"))
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        Aesthetic(head, str(tmp_path / "nowhere"))
    Aesthetic(head)


def test_only_images_are_scored(head: str, backbone: str) -> None:
    with pytest.raises(TypeError, match="scores Images"):
        Aesthetic(head, backbone)(Tokens(torch.zeros(1, 4, dtype=torch.int64), "ACGT"), [""])
