"""The network against the BLIP of transformers, whose weights are renamed to the official ones."""

import itertools
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffreward.conformance import check_reward
from diffreward.preprocessing import CLIP_MEAN, CLIP_STD
from diffreward.random import stream
from diffreward.rewards.image_reward import ImageReward
from diffreward.samples import Images, Videos

PICTURES = Path(__file__).parents[2].parent / "shared" / "data" / "rewards" / "images"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "seven", "##s", "one"]
PROMPTS = ["a red seven", "Green sevens"]
CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 40,
    "vocab_size": len(WORDS),
}
OFFICIAL_NAMES = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding": "patch_embed.proj",
    "encoder.layers": "blocks",
    "layer_norm": "norm",
    "self_attn.projection": "attn.proj",
    "self_attn": "attn",
    "post_layernorm": "norm",
}


def official(name: str) -> str:
    for theirs, ours in OFFICIAL_NAMES.items():
        name = name.replace(theirs, ours)
    return name


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """Vision, text and head of random weights, none of which is at its start, as by training."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    vision = {"num_attention_heads": 1, "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6}
    text = {**CONFIG, "encoder_hidden_size": 64, "is_decoder": True, "hidden_act": "gelu"}
    widths = [32, 16, 12, 8, 4, 1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {
            "vision": BlipVisionModel(BlipVisionConfig(**sizes, **vision)),
            "text": BlipTextModel(BlipTextConfig(**text), add_pooling_layer=False),
            "head": nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths))),
        }
        for part in parts.values():
            for parameter in part.eval().requires_grad_(False).parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    return parts


@pytest.fixture(scope="module")
def state(parts: dict[str, Any]) -> dict[str, Tensor]:
    vision, text, head = (parts[name].state_dict() for name in ("vision", "text", "head"))
    places = ["0", "2", "4", "6", "7"]
    return {
        **{f"blip.visual_encoder.{official(k)}": v for k, v in vision.items()},
        **{f"blip.text_encoder.{k}": v for k, v in text.items()},
        **{f"mlp.layers.{places[int(k[0])]}{k[1:]}": v for k, v in head.items()},
        # The official file holds these too.
        "blip.text_encoder.embeddings.position_ids": torch.arange(40)[None],
        "blip.vision_proj.weight": torch.ones(4, 64),
    }


@pytest.fixture(scope="module")
def folder(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    torch.save(state, path / "ImageReward.pt")
    (path / "med_config.json").write_text(json.dumps(CONFIG))
    (path / "vocab.txt").write_text("\n".join(WORDS))
    return str(path)


def noise(n: int, side: int = 32) -> Images:
    levels = torch.randint(50, 200, (n, 3, side, side), generator=stream(n, side))
    return Images(levels.float() / 255)


def expected(parts: dict[str, Any], samples: Images, ids: list[list[int]]) -> Tensor:
    """The official steps with the network of transformers, without padding."""
    from PIL import Image

    small = [np.array(image.resize((32, 32), Image.Resampling.BICUBIC)) for image in samples.pil()]
    pixels = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    scores = []
    for image, row in zip(pixels, ids, strict=True):
        rows = parts["vision"](image[None]).last_hidden_state
        text = {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row))}
        read = parts["text"](**text, encoder_hidden_states=rows, is_decoder=False)
        scores.append(parts["head"](read.last_hidden_state[:, 0])[0, 0])
    return (torch.stack(scores) - 0.16717362830052426) / 1.0333394966054072


@pytest.mark.parametrize("side", [32, 45])
def test_scores_are_those_of_the_blip_of_transformers(
    parts: dict[str, Any], folder: str, side: int
) -> None:
    samples = noise(2, side)
    scores = ImageReward(folder, folder)(samples, PROMPTS)
    ids = [[2, 5, 6, 8, 3], [2, 7, 8, 9, 3]]
    torch.testing.assert_close(scores, expected(parts, samples, ids), rtol=1e-4, atol=1e-4)
    swapped = ImageReward(folder, folder)(samples, PROMPTS[::-1])
    assert ((scores - swapped).abs() > 1e-3).all()


def test_a_prompt_is_cut_off_after_35_tokens(parts: dict[str, Any], folder: str) -> None:
    samples, reward = noise(1), ImageReward(folder, folder)
    long = " ".join(["red"] * 33 + ["green"] * 5)
    scores = reward(samples, [long])
    ids = [[2, *[6] * 33, 3]]
    torch.testing.assert_close(scores, expected(parts, samples, ids), rtol=1e-4, atol=1e-4)
    assert not torch.equal(scores, reward(samples, [" ".join(["red"] * 32)]))


def test_the_gradient_is_the_slope_between_neighbouring_images(folder: str) -> None:
    reward = ImageReward(folder, folder)
    pixels = noise(2).pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(Images(pixels), PROMPTS).sum(), pixels)
    # One level, the least that counts, in few pixels: a short step.
    chosen = torch.rand(pixels.shape, generator=stream(5)) < 0.05
    step = gradient.sign() * chosen / 255
    with torch.no_grad():
        rise = reward(Images(pixels + step), PROMPTS) - reward(Images(pixels - step), PROMPTS)
    assert (rise > 0).all()
    torch.testing.assert_close(rise / 2, (gradient * step).sum((1, 2, 3)), rtol=0.02, atol=1e-5)


def test_the_contract_is_kept(folder: str) -> None:
    check_reward(ImageReward(folder, folder), noise(2), PROMPTS)


def test_copies_score_alike_and_carry_no_network(folder: str) -> None:
    reward = ImageReward(folder, folder)
    scores = reward(noise(2), PROMPTS)
    stored = pickle.dumps(reward)
    assert len(stored) < 10_000
    assert torch.equal(pickle.loads(stored)(noise(2), PROMPTS), scores)


def test_two_rewards_hold_one_network(folder: str) -> None:
    rewards = [ImageReward(folder, folder) for _ in range(2)]
    for reward in rewards:
        reward(noise(1), PROMPTS[:1])
    assert rewards[0]._network is rewards[1]._network


@pytest.mark.parametrize(
    ("stem", "message"),
    [("mlp.layers.4", "lacks .*4.weight"), ("blip.visual_encoder.blocks.0", "no weights of BLIP")],
)
def test_weights_of_another_network_are_refused(
    state: dict[str, Tensor], folder: str, tmp_path: Path, stem: str, message: str
) -> None:
    (tmp_path / "med_config.json").write_text(json.dumps(CONFIG))
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(stem)}
    torch.save(rest, tmp_path / "ImageReward.pt")
    with pytest.raises(ValueError, match=message):
        ImageReward(str(tmp_path), folder)(noise(1), PROMPTS[:1])


def test_files_that_do_not_exist_are_reported_at_once(folder: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"med_config\.json"):
        ImageReward(str(tmp_path), folder)
    with pytest.raises(FileNotFoundError, match=r"vocab\.txt"):
        ImageReward(folder, str(tmp_path))
    ImageReward()


def test_only_images_are_scored(folder: str) -> None:
    with pytest.raises(TypeError, match="scores Images"):
        ImageReward(folder, folder)(Videos(torch.zeros(1, 2, 3, 32, 32)), [""])


@pytest.mark.slow
def test_the_official_pictures_get_their_official_scores() -> None:
    # Of the README of THUDM/ImageReward, which allows for differences between devices.
    model, tokenizer = os.environ.get("IMAGE_REWARD"), os.environ.get("BERT_BASE_UNCASED")
    if not (model and tokenizer and PICTURES.is_dir()):
        pytest.skip("IMAGE_REWARD and BERT_BASE_UNCASED do not name folders, or no pictures")
    from PIL import Image
    from torchvision.transforms.functional import to_tensor

    files = [PICTURES / f"imagereward_{n}.webp" for n in range(1, 5)]
    prompt = "a painting of an ocean with clouds and birds, day time, low depth field effect"
    pixels = [to_tensor(Image.open(file).convert("RGB"))[None] for file in files]
    reward = ImageReward(model, tokenizer)
    with torch.no_grad():
        scores = torch.cat([reward(Images(image), [prompt]) for image in pixels])
    golden = torch.tensor([0.58116227, 0.27452761, -1.41318190, -2.02956963])
    torch.testing.assert_close(scores, golden, rtol=0, atol=1e-2)
