import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from diffreward.random import stream
from diffreward.reward import score
from diffreward.rewards.clip_score import ClipScore
from diffreward.samples import Images, Tokens

DIGITS_CLIP = Path(__file__).parents[2] / "assets" / "digits-clip"
PROMPTS = ["a red seven on a blue background", "a green one on a white background", "a cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import open_clip

    model = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 32,
            "patch_size": 8,
            "head_width": 16,
        },
        "text_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 1},
    }
    picture = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"}
    path = tmp_path_factory.mktemp("clip")
    config = {"model_cfg": model, "preprocess_cfg": picture}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = open_clip.CLIP(**model).state_dict()
    save_file(weights, path / "open_clip_model.safetensors")
    return path


def noise(n: int = 3, height: int = 32, width: int = 32) -> Images:
    # Levels in the middle of the range, where a step of one level is possible on both sides.
    levels = torch.randint(50, 200, (n, 3, height, width), generator=stream(n, height, width))
    return Images(levels.float() / 255)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 24), (50, 41)])
def test_the_score_is_the_cosine_that_open_clip_gives(
    folder: Path, height: int, width: int
) -> None:
    import open_clip

    name = f"local-dir:{folder}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.eval()
    samples = noise(3, height, width)
    with torch.no_grad():
        pictures = model.encode_image(torch.stack([transform(image) for image in samples.pil()]))
        texts = model.encode_text(open_clip.get_tokenizer(name)(PROMPTS))
    scores = ClipScore(str(folder))(samples, PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, F.cosine_similarity(pictures, texts), rtol=0, atol=1e-6)


def test_prefix_and_scale_give_the_other_conventions(folder: Path) -> None:
    samples = noise()
    plain = ClipScore(str(folder))(samples, [f"A photo depicts {prompt}" for prompt in PROMPTS])
    scores = ClipScore(str(folder), prefix="A photo depicts ", scale=2.5)(samples, PROMPTS)
    torch.testing.assert_close(scores, 2.5 * plain)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_five_conventions_in_use_follow_from_the_cosine(folder: Path, sign: int) -> None:
    name, samples = str(folder), noise()
    cosine = ClipScore(name)(samples, PROMPTS)
    # DAS takes the cosine, imscore CLIP's logits, DiffusionNFT a hundredth of them.
    torch.testing.assert_close(ClipScore(name, scale=100)(samples, PROMPTS), 100 * cosine)
    # torchmetrics and Hessel et al. cut off at zero, in other units. Of the two signs one at least
    # leaves scores above it.
    for scale in (100, 2.5):
        reward = ClipScore(name, scale=sign * scale)
        positive = score(lambda s, p, r=reward: r(s, p).clamp(min=0), samples, PROMPTS)
        torch.testing.assert_close(positive, scale * (sign * cosine).clamp(min=0))


def path_of(model: str, folder: Path) -> Path:
    path = {"tiny": folder, "digits": DIGITS_CLIP}[model]
    if not (path / "open_clip_config.json").is_file():
        pytest.skip(f"{path} is not here")
    return path


def test_the_gradient_is_the_slope_between_neighbouring_images(folder: Path) -> None:
    # Images of the model's own size are not resized, so the score is smooth from level to level.
    reward = ClipScore(str(folder))
    pixels = noise(3, 32, 32).pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(Images(pixels), PROMPTS).sum(), pixels)
    step = gradient.sign() / 255
    with torch.no_grad():
        rise = reward(Images(pixels + step), PROMPTS) - reward(Images(pixels - step), PROMPTS)
    torch.testing.assert_close(rise / 2, (gradient * step).sum((1, 2, 3)), rtol=0.02, atol=1e-5)


@pytest.mark.parametrize("model", ["tiny", "digits"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (100, 70)])
def test_following_the_gradient_raises_the_score(
    folder: Path, model: str, height: int, width: int
) -> None:
    reward = ClipScore(str(path_of(model, folder)))
    pixels = noise(3, height, width).pixels.requires_grad_()
    scores = reward(Images(pixels), PROMPTS)
    (gradient,) = torch.autograd.grad(scores.sum(), pixels)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    with torch.no_grad():
        moved = reward(Images(pixels + 5 * gradient.sign() / 255), PROMPTS)
    assert (moved > scores).all()


def test_images_without_gradient_get_no_graph(folder: Path) -> None:
    reward = ClipScore(str(folder))
    assert not reward(noise(), PROMPTS).requires_grad


def test_a_first_call_in_inference_mode_spoils_nothing(folder: Path) -> None:
    reward = ClipScore(str(folder))
    with torch.inference_mode():
        first = reward(noise(), PROMPTS)
    pixels = noise().pixels.requires_grad_()
    scores = reward(Images(pixels), PROMPTS)
    scores.sum().backward()
    torch.testing.assert_close(scores.detach(), first)
    assert pixels.grad is not None


def test_the_embedding_of_a_prompt_does_not_depend_on_the_prompts_before(folder: Path) -> None:
    fresh, used = ClipScore(str(folder)), ClipScore(str(folder))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        used(noise(), PROMPTS)
    assert torch.equal(used(noise(1), PROMPTS[:1]), fresh(noise(1), PROMPTS[:1]))


def test_a_spoilt_image_has_no_score_and_its_neighbours_keep_theirs(folder: Path) -> None:
    reward = ClipScore(str(folder))
    good = reward(noise(), PROMPTS)
    pixels = noise().pixels
    pixels[1, 0, 0, 0] = torch.nan
    scores = reward(Images(pixels), PROMPTS)
    assert scores.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(scores[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda reward: pickle.loads(pickle.dumps(reward))]
)
def test_copies_score_alike_and_carry_no_weights(folder: Path, copied: Any) -> None:
    reward = ClipScore(str(folder))
    scores = reward(noise(), PROMPTS)
    assert len(pickle.dumps(reward)) < 10_000
    assert torch.equal(copied(reward)(noise(), PROMPTS), scores)


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    before = torch.get_rng_state()
    ClipScore(str(folder))(noise(), PROMPTS)
    assert torch.equal(torch.get_rng_state(), before)


def test_folders_and_files_that_do_not_exist_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; .*ViT-L-14"):
        ClipScore(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ClipScore("local-dir:nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no open_clip_config\.json"):
        ClipScore(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="names are like ViT-L-14"):
        ClipScore("ViT-L/14")
    with pytest.raises(FileNotFoundError, match="no weights at"):
        ClipScore("ViT-B-32", pretrained=str(tmp_path / "weights.pt"))
    ClipScore()
    ClipScore("hf-hub:laion/CLIP-ViT-H-14-laion2B-s32B-b79K")


def test_a_folder_without_weights_is_not_scored_with_random_ones(
    folder: Path, tmp_path: Path
) -> None:
    config = (folder / "open_clip_config.json").read_text()
    (tmp_path / "open_clip_config.json").write_text(config)
    with pytest.raises(RuntimeError, match="pretrained weights"):
        ClipScore(str(tmp_path))(noise(), PROMPTS)


@pytest.mark.parametrize(
    ("model", "pretrained", "quick"),
    [("ViT-L-14", "openai", True), ("ViT-H-14", "laion2b_s32b_b79k", False)],
)
def test_weights_get_the_activation_they_were_trained_with(
    monkeypatch: pytest.MonkeyPatch, model: str, pretrained: str, quick: bool
) -> None:
    import open_clip

    class AskedError(Exception):
        pass

    def create_model(*arguments: object, **options: object) -> None:
        raise AskedError(arguments, options["force_quick_gelu"])

    monkeypatch.setattr(open_clip, "create_model", create_model)
    with pytest.raises(AskedError) as asked:
        ClipScore(model, pretrained)(noise(), PROMPTS)
    assert asked.value.args == ((model, pretrained), quick)


def test_only_images_are_scored(folder: Path) -> None:
    with pytest.raises(TypeError, match="scores Images"):
        ClipScore(str(folder))(Tokens(torch.zeros(1, 4, dtype=torch.int64), "ACGT"), [""])
