"""MPS: which image of a prompt people would prefer, judged by the words of a condition.

Source: Zhang et al. (2024), CVPR, "Learning Multi-Dimensional Human Preference for Text-to-Image
Generation", and the repository Kwai-Kolors/MPS. The tokens of an image attend to those words of the
prompt that are close to the condition, in four blocks on a CLIP model; the score is the cosine of
what becomes of the image and the prompt, times CLIP's temperature.

The closeness of a word is relative to the closest of its prompt. The published code divides by the
closest of the batch, which is the same for one prompt at a time, as it is evaluated, and makes the
score depend on the batch otherwise. That code runs in half precision, this in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreward.backbones import EmbeddedTexts, load_once, locate
from diffreward.preprocessing import clip_resize
from diffreward.reward import Reward
from diffreward.samples import Samples, images

CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, "
    "structure, instance, texture, quantity, attributes, position, number, location, word, things."
)
"""The words of overall preference, the only condition whose weights are published."""


class MPS(Reward):
    """Log-odds of being preferred. Differentiable in the pixels.

    Compare scores of one prompt only. The model is loaded by the first call, in float32, onto the
    device of the pixels. A prompt longer than the model's context, 77 tokens, is cut off there.

    Args:
        weights: a hub id or a folder that holds ``model.safetensors``, in the names of the package
            imscore, which has published the weights there.
        clip: the CLIP model whose architecture and tokenizer they are for, of transformers, a hub
            id or a folder. Its own weights are not loaded.
        threshold: how close a word is to the condition, relative to the closest, for the image to
            attend to it. The published model has 0.01, the published evaluation 0.3.

    Raises:
        FileNotFoundError: if a folder does not exist or holds something else.
    """

    def __init__(
        self,
        weights: str = "RE-N-Y/mpsv1",
        clip: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        threshold: float = 0.01,
    ) -> None:
        self.weights = locate(weights, "model.safetensors")
        self.clip = locate(clip)
        self.threshold = threshold
        self._network: Any = None
        self._tokenizer: Any = None
        # All tokens of a text are kept: a third of a megabyte each.
        self._texts = EmbeddedTexts(size=500)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        pixels = images(samples)
        if self._network is None:
            self._load()
        network = self._network.to(pixels.device)
        rows = self._texts(prompts, self._embed_text, pixels.device)
        words, sentence = rows[:, :-1], rows[:, -1]
        condition = self._texts([CONDITION], self._embed_text, pixels.device)[0, :-1]
        closeness = (words @ condition.T).amax(2)
        closeness = closeness / closeness.amax(1, keepdim=True)
        inputs = clip_resize(
            pixels, network.model.config.vision_config.image_size, halve=math.floor
        )
        pictures = network(inputs, words, closeness > self.threshold)
        scale: Tensor = network.model.logit_scale.exp()
        return scale * F.cosine_similarity(pictures, sentence)

    def _embed_text(self, text: str) -> Tensor:
        """(L + 1, D): the features of all L tokens, padding included, and of the whole text."""
        clip = self._network.model
        tokens = self._tokenizer(
            text,
            padding="max_length",
            truncation=True,
            max_length=clip.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        # As in the published code, padding is not masked.
        output = clip.text_model(input_ids=tokens.input_ids.to(clip.logit_scale.device))
        rows = torch.cat([output.last_hidden_state, output.pooler_output[:, None]], 1)[0]
        return clip.text_projection(rows)  # type: ignore[no-any-return]

    def _load(self) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(self.clip)
        file = Path(self.weights) / "model.safetensors"
        if not file.is_file():
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(self.weights, file.name))
        self._network = load_once(_Network, str(file), lambda source: _read(source, self.clip))

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the model by itself when first called.
        return {**self.__dict__, "_network": None, "_tokenizer": None}


class _Network(nn.Module):
    """A CLIP model and the blocks on it. The names of the parts are those in the weights."""

    def __init__(self, clip: nn.Module, blocks: int, width: int, head: int, heads: int) -> None:
        super().__init__()
        self.model: Any = clip
        pairs = [
            nn.ModuleList(
                nn.ModuleDict({"fn": kind(width, head, heads)}) for kind in (_Attend, _Mix)
            )
            for _ in range(blocks)
        ]
        self.cross_model: Any = nn.ModuleDict({"layers": nn.ModuleList(pairs)})

    def forward(self, inputs: Tensor, words: Tensor, seen: Tensor) -> Tensor:
        """The images, (B, D), after looking at the words, (B, L, D), that are seen, (B, L)."""
        x = self.model.vision_model(pixel_values=inputs).last_hidden_state
        x = self.model.visual_projection(x)
        for attend, mix in self.cross_model["layers"]:
            x = x + attend["fn"](x, words, seen)
            x = x + mix["fn"](x)
        return x[:, 0]  # type: ignore[no-any-return]


class _Attend(nn.Module):
    """Attention to words, whose keys and values all heads share, next to a feed-forward layer."""

    def __init__(self, width: int, head: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, head * heads, bias=False)
        self.to_kv = nn.Linear(width, 2 * head, bias=False)
        self.to_out = nn.Linear(head * heads, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 8 * width, bias=False),
            _SwiGLU(),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, x: Tensor, words: Tensor, seen: Tensor) -> Tensor:
        x = self.norm(x)
        queries = self.to_q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        keys, values = self.to_kv(words)[:, None].chunk(2, dim=3)
        found = _attention(queries, keys, values, seen[:, None, None])
        return self.to_out(found) + self.ff(x)  # type: ignore[no-any-return]


class _Mix(nn.Module):
    """Attention among the tokens of the image, with rotary positions, the same way."""

    def __init__(self, width: int, head: int, heads: int) -> None:
        super().__init__()
        self.heads, self.sizes = heads, (head * heads, head, head, 8 * width)
        self.norm = nn.LayerNorm(width)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.attn_out = nn.Linear(head * heads, width, bias=False)
        self.ff_out = nn.Sequential(_SwiGLU(), nn.Linear(4 * width, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values, gates = self.fused_attn_ff_proj(self.norm(x)).split(self.sizes, 2)
        queries = queries.unflatten(2, (self.heads, -1)).transpose(1, 2)
        found = _attention(_rotated(queries), _rotated(keys[:, None]), values[:, None], None)
        return self.attn_out(found) + self.ff_out(gates)  # type: ignore[no-any-return]


class _SwiGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        values, gates = x.chunk(2, dim=-1)
        return F.silu(gates) * values


def _attention(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None) -> Tensor:
    """(B, N, heads * D), of queries (B, heads, N, D) and the keys and values (B, 1, M, D)."""
    shape = (*queries.shape[:2], *keys.shape[2:])
    found = F.scaled_dot_product_attention(
        queries, keys.expand(shape), values.expand(shape), attn_mask=seen
    )
    return found.transpose(1, 2).flatten(2)


def _rotated(x: Tensor) -> Tensor:
    """Su et al. (2021), arXiv:2104.09864: pairs (i, i + D/2) of (..., N, D), turned by position."""
    length, size = x.shape[-2:]
    places = torch.arange(length, device=x.device, dtype=torch.float32)
    speeds = 10_000 ** (-torch.arange(0, size, 2, device=x.device, dtype=torch.float32) / size)
    angles = places[:, None] * speeds
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _read(file: str, clip: str) -> _Network:
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPModel

    state = _renamed(load_file(file))
    queries = [n for n in state if n.startswith("cross_model.") and n.endswith("to_q.weight")]
    both, width = state[queries[0].replace("to_q", "to_kv")].shape
    heads = 2 * state[queries[0]].shape[0] // both
    model = CLIPModel(CLIPConfig.from_pretrained(clip))
    network = _Network(model, len(queries), width, both // 2, heads)
    network.load_state_dict(state)
    return network


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters alone, without what positions older versions of transformers have stored."""
    fixed = ("position_ids", "inv_freq")
    return {n.removeprefix("mps."): t for n, t in state.items() if not n.endswith(fixed)}
