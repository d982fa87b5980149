"""CLIP models of the real classes with random weights, small enough to run in milliseconds."""

import json
from pathlib import Path

import tiny
import torch
from torch import nn

from diffreward.random import stream
from diffreward.samples import Images

PROMPTS = ["a red cat", "a blue dog", "a photo of a cat on a red dog in a blue hat of a dog"]
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def noise(n: int = 3, height: int = 32, width: int = 32) -> Images:
    """Levels in the middle of the range, where a step of one level is possible on both sides."""
    levels = torch.randint(50, 200, (n, 3, height, width), generator=stream(n, height, width))
    return Images(levels.float() / 255)


def transformers_clip(folder: Path, seed: int = 0, context: int = 16) -> Path:
    """A folder with a `CLIPModel` of 32 x 32 pixels and 8 features, and its tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    tokens = tiny.tokenizer(folder)
    tokens.save_pretrained(folder)
    text = {
        **TOWER,
        "vocab_size": len(tokens),
        "max_position_embeddings": context,
        "eos_token_id": tokens.eos_token_id,
    }
    pictures = {**TOWER, "image_size": 32, "patch_size": 8, "projection_dim": 8}
    config = CLIPConfig(text_config=text, vision_config=pictures, projection_dim=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        spread_out(CLIPModel(config)).save_pretrained(folder)
    return folder


def open_clip_config(folder: Path, name: str) -> None:
    """Teach open_clip a model of 32 x 32 pixels and 16 features."""
    import open_clip

    config = {
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
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")


def spread_out(model: nn.Module) -> nn.Module:
    """Larger weights: freshly made ones map all images to almost the same embedding."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "embedding" not in name:
            weight.data.mul_(1.5)
    return model
