import pickle
from pathlib import Path

import pytest
import torch

from diffreward.embeddings.clip_image import ClipImageEmbedding
from diffreward.random import stream
from diffreward.samples import Images, Videos


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    images = {"image_size": 32, "patch_size": 8, "projection_dim": 8, "num_attention_heads": 2}
    path = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, **images))
        tower.save_pretrained(path)
    return str(path)


def noise(n: int, height: int, width: int) -> Images:
    levels = torch.randint(50, 200, (n, 3, height, width), generator=stream(n, height, width))
    return Images(levels.float() / 255)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 70)])
def test_rows_are_the_image_embeddings_of_transformers(model: str, height: int, width: int) -> None:
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    samples = noise(2, height, width)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    inputs = CLIPImageProcessorPil(**size)(samples.pil(), return_tensors="pt")
    with torch.no_grad():
        tower = CLIPVisionModelWithProjection.from_pretrained(model).eval()
        expected = tower(**inputs).image_embeds
    rows = ClipImageEmbedding(model)(samples, ["", ""])
    assert rows.shape == (2, 1, 8)
    torch.testing.assert_close(rows[:, 0], expected, rtol=0, atol=1e-5)


def test_the_gradient_is_the_slope_between_neighbouring_images(model: str) -> None:
    embedding, direction = ClipImageEmbedding(model), torch.randn(8, generator=stream(3))
    pixels = noise(2, 32, 32).pixels.requires_grad_()
    along = (embedding(Images(pixels), ["", ""])[:, 0] @ direction).sum()
    (gradient,) = torch.autograd.grad(along, pixels)
    step = gradient.sign() / 255
    with torch.no_grad():
        rows = [embedding(Images(p), ["", ""])[:, 0] for p in (pixels + step, pixels - step)]
    rise = (rows[0] - rows[1]) @ direction
    torch.testing.assert_close(rise / 2, (gradient * step).sum((1, 2, 3)), rtol=0.05, atol=1e-5)


def test_copies_embed_alike_and_carry_no_tower(model: str) -> None:
    embedding = ClipImageEmbedding(model)
    rows = embedding(noise(2, 32, 32), ["", ""])
    stored = pickle.dumps(embedding)
    assert len(stored) < 10_000
    assert torch.equal(pickle.loads(stored)(noise(2, 32, 32), ["", ""]), rows)


def test_embeddings_of_one_model_share_its_tower(model: str) -> None:
    embeddings = [ClipImageEmbedding(model) for _ in range(2)]
    for embedding in embeddings:
        embedding(noise(1, 32, 32), [""])
    assert embeddings[0]._tower is embeddings[1]._tower


def test_a_folder_without_a_model_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        ClipImageEmbedding(str(tmp_path))
    ClipImageEmbedding()


def test_only_images_are_embedded(model: str) -> None:
    with pytest.raises(TypeError, match="scores Images"):
        ClipImageEmbedding(model)(Videos(torch.zeros(1, 2, 3, 32, 32)), [""])
