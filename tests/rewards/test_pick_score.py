import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import tiny_clip
import torch
from tiny_clip import PROMPTS, noise
from torch import Tensor

from diffreward.conformance import check_reward
from diffreward.rewards.aesthetic import Aesthetic
from diffreward.rewards.pick_score import PickScore
from diffreward.samples import Images, Tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_clip.transformers_clip(tmp_path_factory.mktemp("pick")))


def published(folder: str, samples: Images, prompts: list[str]) -> Tensor:
    """The score by the steps of the authors' example, all images against all prompts."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    pixels = CLIPImageProcessorPil(**size)(samples.pil(), return_tensors="pt")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(prompts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    assert 0 < tokens.attention_mask.float().mean() < 1
    with torch.no_grad():
        logits = model(**tokens, **pixels).logits_per_text
    return logits.diagonal()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (50, 41), (32, 43)])
def test_the_score_is_the_logit_that_the_authors_compute(
    folder: str, height: int, width: int
) -> None:
    samples = noise(3, height, width)
    scores = PickScore(folder, folder)(samples, PROMPTS)
    assert scores.dtype == torch.float32 and not scores.requires_grad
    assert scores.std() > 0.1
    torch.testing.assert_close(scores, published(folder, samples, PROMPTS), rtol=0, atol=2e-5)


def test_the_scale_is_the_temperature_unless_another_is_given(folder: str) -> None:
    cosine = PickScore(folder, folder, scale=1.0)(noise(), PROMPTS)
    assert (cosine.abs() <= 1).all()
    # exp(logit_scale) of a new CLIP model is 1 / 0.07; the configuration rounds its logarithm.
    logits = PickScore(folder, folder)(noise(), PROMPTS)
    torch.testing.assert_close(logits, cosine / 0.07, rtol=1e-4, atol=0)
    by_26 = PickScore(folder, folder, scale=100 / 26)(noise(), PROMPTS)
    torch.testing.assert_close(by_26, 100 * cosine / 26)


def test_scores_keep_the_contract(folder: str) -> None:
    check_reward(PickScore(folder, folder), noise(3, 40, 36), PROMPTS)


def test_the_gradient_is_the_slope_between_neighbouring_images(folder: str) -> None:
    # Images of the model's own size are not resized, so the score is smooth from level to level.
    reward = PickScore(folder, folder, scale=1.0)
    pixels = noise().pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(Images(pixels), PROMPTS).sum(), pixels)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    step = gradient.sign() / 255
    with torch.no_grad():
        rise = reward(Images(pixels + step), PROMPTS) - reward(Images(pixels - step), PROMPTS)
    torch.testing.assert_close(rise / 2, (gradient * step).sum((1, 2, 3)), rtol=0.05, atol=1e-4)


def test_two_scores_and_two_aesthetic_heads_load_one_model_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    folder = str(tiny_clip.transformers_clip(tmp_path))
    loads: list[str] = []
    original = PreTrainedModel.from_pretrained.__func__

    def counted(kind: type, *arguments: object, **options: object) -> object:
        loads.append(kind.__name__)
        return original(kind, *arguments, **options)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(counted))
    rewards = [PickScore(folder, folder), PickScore(folder, folder, scale=1.0)]
    for name in ("one", "two"):
        torch.save(torch.nn.Linear(8, 1).state_dict(), tmp_path / f"{name}.pth")
        rewards.append(Aesthetic(str(tmp_path / f"{name}.pth"), folder))
    for reward in rewards:
        reward(noise(), PROMPTS)
    assert sorted(loads) == ["CLIPModel", "CLIPVisionModelWithProjection"]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda reward: pickle.loads(pickle.dumps(reward))]
)
def test_copies_score_alike_and_carry_no_weights(folder: str, copied: Any) -> None:
    reward = PickScore(folder, folder)
    scores = reward(noise(), PROMPTS)
    assert len(pickle.dumps(reward)) < 10_000
    assert torch.equal(copied(reward)(noise(), PROMPTS), scores)


def test_a_first_call_in_inference_mode_spoils_nothing(folder: str) -> None:
    reward = PickScore(folder, folder)
    before = torch.get_rng_state()
    with torch.inference_mode():
        first = reward(noise(), PROMPTS)
    assert torch.equal(torch.get_rng_state(), before)
    pixels = noise().pixels.requires_grad_()
    scores = reward(Images(pixels), PROMPTS)
    scores.sum().backward()
    torch.testing.assert_close(scores.detach(), first)


def test_a_spoilt_image_has_no_score_and_its_neighbours_keep_theirs(folder: str) -> None:
    reward = PickScore(folder, folder)
    good = reward(noise(), PROMPTS)
    pixels = noise().pixels
    pixels[1, 0, 0, 0] = torch.nan
    scores = reward(Images(pixels), PROMPTS)
    assert scores.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(scores[[0, 2]], good[[0, 2]])


def test_folders_that_do_not_exist_are_reported_at_once(folder: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        PickScore(str(tmp_path / "nowhere"), folder)
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer_config\.json"):
        PickScore(folder, str(tmp_path))
    PickScore()


def test_only_images_are_scored(folder: str) -> None:
    with pytest.raises(TypeError, match="scores Images"):
        PickScore(folder, folder)(Tokens(torch.zeros(1, 4, dtype=torch.int64), "ACGT"), [""])
