"""A tiny Audiobox Aesthetics with random weights, in the layout of the published checkpoint."""

import json
from pathlib import Path

import torch
from torch import Tensor

from diffreward.random import stream

WIDTH, HEADS, CHANNELS, HIDDEN, LAYERS = 16, 2, 8, 24, 2
KERNELS = (10, 3, 3, 3, 3, 2, 2)
CONFIG = {
    "normalize_embed": True,
    "target_transform": {
        "CE": {"mean": 5.0, "std": 1.5},
        "CU": {"mean": 6.0, "std": 1.6},
        "PC": {"mean": 7.0, "std": 1.7},
        "PQ": {"mean": 8.0, "std": 1.8},
    },
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Of every tensor, in the order of their names."""
    found: dict[str, tuple[int, ...]] = {
        "wavlm_model.mask_emb": (WIDTH,),
        "wavlm_model.layer_norm.weight": (CHANNELS,),
        "wavlm_model.layer_norm.bias": (CHANNELS,),
        "wavlm_model.post_extract_proj.weight": (WIDTH, CHANNELS),
        "wavlm_model.post_extract_proj.bias": (WIDTH,),
        "wavlm_model.feature_extractor.conv_layers.0.2.weight": (CHANNELS,),
        "wavlm_model.feature_extractor.conv_layers.0.2.bias": (CHANNELS,),
        "wavlm_model.encoder.layer_norm.weight": (WIDTH,),
        "wavlm_model.encoder.layer_norm.bias": (WIDTH,),
        "wavlm_model.encoder.pos_conv.0.weight_g": (1, 1, 8),
        "wavlm_model.encoder.pos_conv.0.weight_v": (WIDTH, WIDTH // 4, 8),
        "wavlm_model.encoder.pos_conv.0.bias": (WIDTH,),
        "wavlm_model.encoder.layers.0.self_attn.relative_attention_bias.weight": (32, HEADS),
    }
    for i, kernel in enumerate(KERNELS):
        name = f"wavlm_model.feature_extractor.conv_layers.{i}.0.weight"
        found[name] = (CHANNELS, CHANNELS if i else 1, kernel)
    for i in range(LAYERS):
        layer = f"wavlm_model.encoder.layers.{i}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            found[f"{layer}self_attn.{name}.weight"] = (WIDTH, WIDTH)
            found[f"{layer}self_attn.{name}.bias"] = (WIDTH,)
        found[f"{layer}self_attn.grep_linear.weight"] = (8, WIDTH // HEADS)
        found[f"{layer}self_attn.grep_linear.bias"] = (8,)
        found[f"{layer}self_attn.grep_a"] = (1, HEADS, 1, 1)
        found[f"{layer}fc1.weight"], found[f"{layer}fc1.bias"] = (HIDDEN, WIDTH), (HIDDEN,)
        found[f"{layer}fc2.weight"], found[f"{layer}fc2.bias"] = (WIDTH, HIDDEN), (WIDTH,)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            found[f"{layer}{name}.weight"] = found[f"{layer}{name}.bias"] = (WIDTH,)
    for axis in CONFIG["target_transform"]:
        found[f"layer_weights.{axis}"] = (LAYERS + 1,)
        for place, shape in ((0, (WIDTH, WIDTH)), (1, (WIDTH,)), (3, (1, WIDTH))):
            found[f"proj_layer.{axis}.{place}.weight"] = shape
            found[f"proj_layer.{axis}.{place}.bias"] = shape[:1]
    return dict(sorted(found.items()))


def weights() -> dict[str, Tensor]:
    """Random weights, the same ones everywhere."""
    return {
        name: 0.5 * torch.randn(shape, generator=stream(i))
        for i, (name, shape) in enumerate(shapes().items())
    }


def write_audiobox(folder: Path) -> str:
    """The files of a hub repository; returns the folder."""
    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(weights(), folder / "model.safetensors")
    return str(folder)
