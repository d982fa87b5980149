import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import tiny_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_clip import PROMPTS, noise
from torch import Tensor

from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.mps import CONDITION, MPS
from diffreward.samples import Images, Tokens

WIDTH, HEAD, HEADS, BLOCKS = 8, 4, 3, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP model and, beside it, the same model with blocks, in the names of the weights."""
    path = tmp_path_factory.mktemp("clip")
    tiny_clip.transformers_clip(path)
    clip = load_file(path / "model.safetensors")
    weights = {f"mps.model.{name}": tensor for name, tensor in clip.items()}
    weights["mps.model.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    inner = HEAD * HEADS
    shapes = {
        "0.fn.norm.weight": (WIDTH,),
        "0.fn.norm.bias": (WIDTH,),
        "0.fn.to_q.weight": (inner, WIDTH),
        "0.fn.to_kv.weight": (2 * HEAD, WIDTH),
        "0.fn.to_out.weight": (WIDTH, inner),
        "0.fn.ff.0.weight": (8 * WIDTH, WIDTH),
        "0.fn.ff.2.weight": (WIDTH, 4 * WIDTH),
        "1.fn.norm.weight": (WIDTH,),
        "1.fn.norm.bias": (WIDTH,),
        "1.fn.rotary_emb.inv_freq": (HEAD // 2,),
        "1.fn.fused_attn_ff_proj.weight": (inner + 2 * HEAD + 8 * WIDTH, WIDTH),
        "1.fn.attn_out.weight": (WIDTH, inner),
        "1.fn.ff_out.1.weight": (WIDTH, 4 * WIDTH),
    }
    for block in range(BLOCKS):
        for name, shape in shapes.items():
            values = 0.4 * torch.randn(shape, generator=stream(block, len(weights)))
            weights[f"mps.cross_model.layers.{block}.{name}"] = values
    save_file(weights, path / "mps.safetensors")
    (path / "weights").mkdir()
    (path / "mps.safetensors").rename(path / "weights" / "model.safetensors")
    return str(path)


def mps(folder: str, **options: Any) -> MPS:
    return MPS(f"{folder}/weights", folder, **options)


def turned(x: Tensor) -> Tensor:
    """Rows of complex numbers, whose parts are half a row apart, turned by their place."""
    half = x.shape[1] // 2
    angles = torch.arange(len(x))[:, None] * 10_000 ** (-torch.arange(half) / half)
    product = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones(()), angles)
    return torch.cat([product.real, product.imag], 1)


def attended(queries: Tensor, keys: Tensor, values: Tensor, rotate: bool) -> Tensor:
    heads = queries.split(HEAD, 1)
    if rotate:
        heads, keys = tuple(turned(head) for head in heads), turned(keys)
    return torch.cat([((h @ keys.T) / HEAD**0.5).softmax(1) @ values for h in heads], 1)


def gated(x: Tensor) -> Tensor:
    return F.silu(x[:, x.shape[1] // 2 :]) * x[:, : x.shape[1] // 2]


def slowly(folder: str, samples: Images, prompts: list[str], threshold: float) -> Tensor:
    """The score from the weights by the formulas, an image and a head at a time."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    clip = CLIPModel.from_pretrained(folder).eval()
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    weights = load_file(f"{folder}/weights/model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def embedded(text: str) -> tuple[Tensor, Tensor]:
        ids = tokenizer(text, padding="max_length", truncation=True, max_length=16).input_ids
        output = clip.text_model(input_ids=torch.tensor([ids]))
        end = ids.index(tokenizer.eos_token_id)
        words = clip.text_projection(output.last_hidden_state)[0]
        return words, words[end]

    def block(n: int, x: Tensor, words: Tensor) -> Tensor:
        w = {
            name.removeprefix(f"mps.cross_model.layers.{n}."): tensor
            for name, tensor in weights.items()
        }
        normed = F.layer_norm(x, (WIDTH,), w["0.fn.norm.weight"], w["0.fn.norm.bias"])
        keys, values = (words @ w["0.fn.to_kv.weight"].T).chunk(2, 1)
        found = attended(normed @ w["0.fn.to_q.weight"].T, keys, values, rotate=False)
        forward = gated(normed @ w["0.fn.ff.0.weight"].T) @ w["0.fn.ff.2.weight"].T
        x = x + found @ w["0.fn.to_out.weight"].T + forward
        normed = F.layer_norm(x, (WIDTH,), w["1.fn.norm.weight"], w["1.fn.norm.bias"])
        parts = (normed @ w["1.fn.fused_attn_ff_proj.weight"].T).split(
            [HEAD * HEADS, HEAD, HEAD, 8 * WIDTH], 1
        )
        found = attended(*parts[:3], rotate=True) @ w["1.fn.attn_out.weight"].T
        return x + found + gated(parts[3]) @ w["1.fn.ff_out.1.weight"].T

    scores = []
    condition = embedded(CONDITION)[0]
    for image, prompt in zip(samples.pil(), prompts, strict=True):
        pixels = CLIPImageProcessorPil(**size)(image, return_tensors="pt")
        words, sentence = embedded(prompt)
        closeness = (words @ condition.T).max(1).values
        words = words[closeness / closeness.max() > threshold]
        x = clip.visual_projection(clip.vision_model(**pixels).last_hidden_state)[0]
        for n in range(BLOCKS):
            x = block(n, x, words)
        scores.append(clip.logit_scale.exp() * F.cosine_similarity(x[0], sentence, dim=0))
    return torch.stack(scores)


@pytest.mark.parametrize("threshold", [0.01, 0.3])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (50, 41)])
def test_the_score_is_what_the_formulas_say(
    folder: str, height: int, width: int, threshold: float
) -> None:
    samples = noise(3, height, width)
    scores = mps(folder, threshold=threshold)(samples, PROMPTS)
    with torch.no_grad():
        expected = slowly(folder, samples, PROMPTS, threshold)
    assert scores.dtype == torch.float32 and scores.std() > 0.1
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


def test_far_words_are_not_looked_at(folder: str) -> None:
    near, far = mps(folder, threshold=0.01), mps(folder, threshold=0.9)
    assert (near(noise(), PROMPTS) - far(noise(), PROMPTS)).abs().min() > 1e-3


def test_scores_keep_the_contract_though_prompts_differ(folder: str) -> None:
    check_reward(mps(folder, threshold=0.5), noise(3, 40, 36), PROMPTS)


def test_the_gradient_is_the_slope_between_neighbouring_images(folder: str) -> None:
    # Images of the model's own size are not resized, so the score is smooth from level to level.
    reward = mps(folder)
    pixels = noise().pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(Images(pixels), PROMPTS).sum(), pixels)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    step = torch.where(torch.rand(pixels.shape, generator=stream(3)) < 0.1, gradient.sign(), 0)
    step = step / 255
    with torch.no_grad():
        rise = reward(Images(pixels + step), PROMPTS) - reward(Images(pixels - step), PROMPTS)
    torch.testing.assert_close(rise / 2, (gradient * step).sum((1, 2, 3)), rtol=0.05, atol=1e-4)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda reward: pickle.loads(pickle.dumps(reward))]
)
def test_copies_score_alike_and_carry_no_weights(folder: str, copied: Any) -> None:
    reward = mps(folder)
    before = torch.get_rng_state()
    scores = reward(noise(), PROMPTS)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(pickle.dumps(reward)) < 10_000
    assert torch.equal(copied(reward)(noise(), PROMPTS), scores)


def test_folders_that_do_not_exist_are_reported_at_once(folder: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        MPS(str(tmp_path), folder)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        MPS(f"{folder}/weights", str(tmp_path / "nowhere"))
    MPS()


def test_only_images_are_scored(folder: str) -> None:
    with pytest.raises(TypeError, match="scores Images"):
        mps(folder)(Tokens(torch.zeros(1, 4, dtype=torch.int64), "ACGT"), [""])
