"""BLIP's image-grounded text encoder: a text, read while looking at an image.

Source: Li et al. (2022), ICML, arXiv:2201.12086, section 3.1: a vision transformer, and a BERT
each of whose layers attends to the text, then to the image. Modules have the names of the official
weights (repository salesforce/BLIP), and the sizes of those weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of both sizes of the vision transformer; weights do not tell it.
_WIDTH_OF_A_HEAD = 64


class Blip(nn.Module):
    """An image and a text to one row per token, differentiable in the image.

    Args:
        state: official weights, ``visual_encoder.*`` and ``text_encoder.*``; others are left out.
        config: the content of ``med_config.json``: numbers that the weights do not tell.

    Raises:
        ValueError: if these are no such weights.
    """

    def __init__(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        super().__init__()
        vision, text = below("visual_encoder.", state), below("text_encoder.", state)
        # Older versions of transformers wrote this table of 0, 1, 2 ... into the file.
        text.pop("embeddings.position_ids", None)
        try:
            # Parameters without memory: those of the file take their place.
            with torch.device("meta"):
                self.visual_encoder, self.text_encoder = _Vision(vision), _Text(text, config)
            self.visual_encoder.load_state_dict(vision, assign=True)
            self.text_encoder.load_state_dict(text, assign=True)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"these are no weights of BLIP: {error}") from error

    @property
    def image_size(self) -> int:
        """The side of the images that the network takes, in pixels."""
        patches = self.visual_encoder.pos_embed.shape[1] - 1
        return int(patches**0.5) * self.visual_encoder.patch

    def forward(self, pixels: Tensor, ids: Tensor, attended: Tensor) -> Tensor:
        """Map B images and texts of L tokens to (B, L, D).

        Args:
            pixels: (B, 3, S, S) with S = `image_size`, as `preprocessing.clip_resize` makes them.
            ids: of the tokens, (B, L) int64.
            attended: (B, L) bool, which tokens are text and not padding.
        """
        rows: Tensor = self.text_encoder(ids, attended, self.visual_encoder(pixels))
        return rows


def below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, under the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


class _Vision(nn.Module):
    """(B, 3, S, S) to a row for the whole image and one for each patch, (B, 1 + N, D)."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        width, channels, self.patch = state["patch_embed.proj.weight"].shape[:3]
        patches = nn.Conv2d(channels, width, self.patch, self.patch)
        self.patch_embed = nn.ModuleDict({"proj": patches})
        self.cls_token = nn.Parameter(torch.empty(state["cls_token"].shape))
        self.pos_embed = nn.Parameter(torch.empty(state["pos_embed"].shape))
        hidden = len(state["blocks.0.mlp.fc1.bias"])
        self.blocks = nn.ModuleList(_Block(width, hidden) for _ in range(_depth("blocks.", state)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](pixels).flatten(2).mT
        x: Tensor = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        qkv, projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn = nn.ModuleDict({"qkv": qkv, "proj": projection})
        wide, narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.mlp = nn.ModuleDict({"fc1": wide, "fc2": narrow})
        self.heads = width // _WIDTH_OF_A_HEAD

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.attn["qkv"](self.norm1(x)).chunk(3, -1)
        x = x + self.attn["proj"](_attend(query, key, value, self.heads))
        x = x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
        return x


class _Text(nn.Module):
    """Ids (B, L), which of them count (B, L), and rows of the image (B, N, C): to (B, L, D)."""

    def __init__(self, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        super().__init__()
        words, width = state["embeddings.word_embeddings.weight"].shape
        places = len(state["embeddings.position_embeddings.weight"])
        context = state["encoder.layer.0.crossattention.self.key.weight"].shape[1]
        hidden = len(state["encoder.layer.0.intermediate.dense.bias"])
        heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
        tables = {
            "word_embeddings": nn.Embedding(words, width),
            "position_embeddings": nn.Embedding(places, width),
        }
        self.embeddings = nn.ModuleDict({**tables, "LayerNorm": nn.LayerNorm(width, eps=eps)})
        depth = _depth("encoder.layer.", state)
        layers = nn.ModuleList(_Layer(width, context, hidden, heads, eps) for _ in range(depth))
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, ids: Tensor, attended: Tensor, image: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.embeddings["word_embeddings"](ids) + self.embeddings["position_embeddings"](places)
        x = self.embeddings["LayerNorm"](x)
        for layer in self.encoder["layer"].children():
            x = layer(x, attended[:, None, None], image)
        found: Tensor = x
        return found


class _Layer(nn.Module):
    def __init__(self, width: int, context: int, hidden: int, heads: int, eps: float) -> None:
        super().__init__()
        self.attention = _Attention(width, width, heads, eps)
        self.crossattention = _Attention(width, context, heads, eps)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, hidden)})
        self.output = _Residual(hidden, width, eps)

    def forward(self, x: Tensor, attended: Tensor, image: Tensor) -> Tensor:
        x = self.attention(x, x, attended)
        x = self.crossattention(x, image)
        x = self.output(F.gelu(self.intermediate["dense"](x)), x)
        return x


class _Attention(nn.Module):
    def __init__(self, width: int, context: int, heads: int, eps: float) -> None:
        super().__init__()
        query, key, value = (nn.Linear(size, width) for size in (width, context, context))
        self.self = nn.ModuleDict({"query": query, "key": key, "value": value})
        self.output = _Residual(width, width, eps)
        self.heads = heads

    def forward(self, x: Tensor, context: Tensor, attended: Tensor | None = None) -> Tensor:
        query, key, value = self.self["query"](x), self.self["key"](context), self.self["value"]
        found: Tensor = self.output(_attend(query, key, value(context), self.heads, attended), x)
        return found


class _Residual(nn.Module):
    """Back to the width of the layer's input, which is added."""

    def __init__(self, inputs: int, width: int, eps: float) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inputs, width), nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        x = self.LayerNorm(self.dense(x) + residual)
        return x


def _attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, attended: Tensor | None = None
) -> Tensor:
    """(B, L, D), from L queries, and N keys and values, of D numbers each."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=attended)
    return found.transpose(1, 2).flatten(2)


def _depth(stem: str, state: Mapping[str, Tensor]) -> int:
    """How many layers are numbered after a stem."""
    return len({key.split(".")[0] for key in below(stem, state)})
