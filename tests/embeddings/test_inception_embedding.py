"""Against torch-fidelity and clean-fid, with random weights in the layout of the official file."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffreward.embeddings.inception import InceptionEmbedding, _clean, _Inception, _tensorflow
from diffreward.preprocessing import quantise
from diffreward.random import stream
from diffreward.samples import Images, Videos

# The first three features and the length of all, by `FeatureExtractorInceptionV3` of torch-fidelity
# 0.4.0 with the weights and images below.
GOLDEN = [[1.019159, 2.847368, 1.284547, 313.067047], [1.120556, 2.639613, 1.376632, 299.628174]]
PICTURES = Path(__file__).parents[2].parent / "shared" / "data" / "rewards" / "images"


def drawn(name: str, shape: torch.Size) -> Tensor:
    """Numbers that keep the features of a deep network near 1."""
    source = stream(0, name)
    if name.endswith("conv.weight"):
        return torch.randn(shape, generator=source) * (2 / shape[1:].numel()) ** 0.5
    if name.endswith(("bn.weight", "running_var")):
        return 0.5 + torch.rand(shape, generator=source)
    return 0.3 * torch.randn(shape, generator=source)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    state = _Inception().state_dict()
    counts = [name for name in state if name.endswith("num_batches_tracked")]
    state = {k: drawn(k, v.shape) for k, v in state.items() if k not in counts}
    fc = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save({**state, **fc}, path)
    return str(path)


@pytest.fixture(scope="module")
def tensorflow(weights: str) -> InceptionEmbedding:
    """Holds its network from test to test, so that others need not load it again."""
    embedding = InceptionEmbedding(weights, "tf")
    embedding(noise(1, 8, 8), [""])
    return embedding


def noise(n: int, height: int, width: int) -> Images:
    """Blurred, so that neighbouring pixels are alike as in pictures."""
    rough = torch.rand(n, 3, 6, 6, generator=stream(n, height, width))
    pixels = torch.nn.functional.interpolate(rough, (height, width), mode="bilinear")
    return Images((pixels * 255).round() / 255)


def test_features_are_those_of_torch_fidelity(tensorflow: InceptionEmbedding) -> None:
    rows = tensorflow(noise(2, 40, 64), ["", ""])
    assert rows.shape == (2, 1, 2048) and rows.dtype == torch.float32
    found = torch.cat([rows[:, 0, :3], rows.norm(dim=-1)], 1)
    torch.testing.assert_close(found, torch.tensor(GOLDEN), rtol=1e-3, atol=1e-3)


def test_all_features_are_those_of_torch_fidelity(
    weights: str, tensorflow: InceptionEmbedding
) -> None:
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    samples = noise(1, 320, 299)
    network = extractor.FeatureExtractorInceptionV3("", ["2048"], weights)
    (expected,) = network(samples.uint8().permute(0, 3, 1, 2))
    rows = tensorflow(samples, [""])
    torch.testing.assert_close(rows[:, 0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n", [7, 299, 640])
def test_tensorflow_counts_places_from_the_corner_of_a_pixel(n: int) -> None:
    # In the ramp 0, 1, 2 ... place x has the value x, up to the last pixel.
    ramp = torch.arange(n, dtype=torch.float64).expand(1, 3, n, n)
    expected = (torch.arange(299, dtype=torch.float64) * n / 299).clamp(max=n - 1)
    torch.testing.assert_close(_tensorflow(ramp), expected.expand(1, 3, 299, 299))
    torch.testing.assert_close(_tensorflow(ramp.mT), expected.expand(1, 3, 299, 299).mT)


@pytest.mark.parametrize("size", [(300, 411), (32, 32), (640, 299)])
def test_images_are_resized_as_pil_resizes_floating_point_images(size: tuple[int, int]) -> None:
    # This is what clean-fid does with each channel.
    from PIL import Image

    samples = noise(1, *size)
    channels = samples.uint8()[0].permute(2, 0, 1).numpy().astype(np.float32)
    resized = [
        np.asarray(Image.fromarray(c).resize((299, 299), Image.Resampling.BICUBIC))
        for c in channels
    ]
    expected = torch.from_numpy(np.stack(resized)).clamp(0, 255)
    found = _clean(quantise(samples.pixels))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


def test_real_pictures_are_resized_as_by_clean_fid() -> None:
    resize = pytest.importorskip("cleanfid.resize")
    from PIL import Image

    file = PICTURES / "imscore_cat.png"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    picture = np.array(Image.open(file).convert("RGB"))
    expected = torch.from_numpy(resize.build_resizer("clean")(picture)).permute(2, 0, 1)
    found = _clean(torch.from_numpy(picture).permute(2, 0, 1)[None].float())[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


@pytest.mark.usefixtures("tensorflow")
def test_the_gradient_is_the_slope_between_neighbouring_images(weights: str) -> None:
    embedding = InceptionEmbedding(weights)
    pixels = noise(1, 40, 40).pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(embedding(Images(pixels), [""]).mean(), pixels)
    chosen = torch.rand(pixels.shape, generator=stream(5)) < 0.05
    step = gradient.sign() * chosen / 255
    with torch.no_grad():
        above, below = (embedding(Images(p), [""]).mean() for p in (pixels + step, pixels - step))
    torch.testing.assert_close((above - below) / 2, (gradient * step).sum(), rtol=0.05, atol=0)


@pytest.mark.usefixtures("tensorflow")
def test_copies_embed_alike_and_carry_no_network(weights: str) -> None:
    embedding = InceptionEmbedding(weights)
    rows = embedding(noise(1, 32, 32), [""])
    stored = pickle.dumps(embedding)
    assert len(stored) < 10_000
    assert torch.equal(pickle.loads(stored)(noise(1, 32, 32), [""]), rows)


OTHERS = {
    "one layer less": {"Mixed_7c.branch_pool.conv.weight": None},
    "the network of torchvision": {"AuxLogits.conv0.conv.weight": torch.zeros(1)},
    "another size": {"Mixed_5b.branch1x1.conv.weight": torch.zeros(1)},
}


@pytest.mark.parametrize("change", OTHERS)
def test_weights_of_another_network_are_refused(weights: str, tmp_path: Path, change: str) -> None:
    state = {**torch.load(weights, weights_only=True), **OTHERS[change]}
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    torch.save(kept, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not of the Inception of FID"):
        InceptionEmbedding(str(tmp_path / "other.pth"))(noise(1, 32, 32), [""])


def test_what_does_not_exist_is_reported_at_once(weights: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="download"):
        InceptionEmbedding(str(tmp_path / "nowhere.pth"))
    with pytest.raises(ValueError, match="resize is one of"):
        InceptionEmbedding(weights, "bilinear")


def test_only_images_are_embedded(weights: str) -> None:
    with pytest.raises(TypeError, match="scores Images"):
        InceptionEmbedding(weights)(Videos(torch.zeros(1, 2, 3, 32, 32)), [""])
