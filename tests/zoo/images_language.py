"""Image pipelines around a transformer, with a language model for the text."""

from functools import partial
from pathlib import Path

import torch
from diffusers import (
    CogView4ControlPipeline,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    OmniGenPipeline,
    OmniGenTransformer2DModel,
    PRXPipeline,
    PRXTransformer2DModel,
    UniPCMultistepScheduler,
    ZImageImg2ImgPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextModelWithProjection,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3Model,
)

from zoo.entry import Entry
from zoo.parts import (
    PICTURE,
    SIZE,
    WIDTH,
    Components,
    adjusted,
    clip,
    entry,
    language_model,
    t5,
    tokenizer,
    vae,
)


def cogview_4(folder: Path, **network: object) -> Components:
    encoder, tokens = language_model(GlmModel, GlmConfig)
    return {
        "transformer": CogView4Transformer2DModel(
            **{"in_channels": 4, "out_channels": 4} | network,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=WIDTH,
            time_embed_dim=8,
            condition_dim=4,
            rope_axes_dim=(8, 8),
        ),
        "vae": vae(),
        "text_encoder": encoder,
        "tokenizer": tokens,
    }


def z_image(folder: Path) -> Components:
    encoder, tokens = language_model(Qwen3Model, Qwen3Config)
    network = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    # Whatever memory holds, until weights are loaded.
    torch.nn.init.zeros_(network.x_pad_token)
    torch.nn.init.zeros_(network.cap_pad_token)
    return {
        "transformer": network,
        "vae": vae(shift_factor=0.06),
        "text_encoder": encoder,
        "tokenizer": tokens,
    }


def prx(folder: Path) -> Components:
    encoder, tokens = language_model(Qwen3Model, Qwen3Config)
    return {
        "transformer": PRXTransformer2DModel(
            in_channels=4,
            patch_size=1,
            context_in_dim=WIDTH,
            hidden_size=16,
            mlp_ratio=2.0,
            num_heads=2,
            depth=1,
            axes_dim=[4, 4],
        ),
        "vae": vae(shift_factor=0.0),
        "text_encoder": encoder,
        "tokenizer": tokens,
    }


def omnigen(folder: Path) -> Components:
    tokens = tokenizer()
    return {
        "transformer": OmniGenTransformer2DModel(
            in_channels=4,
            hidden_size=16,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=32,
            num_layers=1,
            time_step_dim=16,
            vocab_size=len(tokens),
            pad_token_id=tokens.pad_token_id,
            rope_scaling={"long_factor": [1] * 4, "short_factor": [1] * 4},
            pos_embed_max_size=16,
        ),
        "vae": vae(blocks=4),
        "tokenizer": tokens,
    }


def hidream(folder: Path) -> Components:
    first, tokens = clip(folder, CLIPTextModelWithProjection, length=128)
    second, _ = clip(folder, CLIPTextModelWithProjection, length=128)
    third, tokens_3 = t5()
    fourth, tokens_4 = language_model(LlamaForCausalLM, LlamaConfig)
    return {
        "transformer": HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[WIDTH, WIDTH],
            text_emb_dim=2 * WIDTH,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(8, 8),
            llama_layers=(0, 1),
        ),
        "vae": vae(shift_factor=0.06),
        "text_encoder": first,
        "text_encoder_2": second,
        "text_encoder_3": third,
        "text_encoder_4": fourth,
        "tokenizer": tokens,
        "tokenizer_2": tokens,
        "tokenizer_3": tokens_3,
        "tokenizer_4": tokens_4,
    }


def few_pixels(pipe: DiffusionPipeline) -> None:
    """HiDream's pipeline scales every height and width to an area of its own."""
    pipe.default_sample_size = 8


euler_flow = partial(FlowMatchEulerDiscreteScheduler, shift=3.0)
shifted = partial(euler_flow, use_dynamic_shifting=True)
"""Shifts the noise levels by the number of tokens."""
unipc_flow = partial(
    UniPCMultistepScheduler, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
)
omnigen_euler = partial(FlowMatchEulerDiscreteScheduler, invert_sigmas=True, num_train_timesteps=1)

image = partial(entry, **SIZE)
larger = partial(entry, height=32, width=32)

ENTRIES: list[Entry] = [
    adjusted(image(HiDreamImagePipeline, hidream, unipc_flow), few_pixels),
    adjusted(image(HiDreamImagePipeline, hidream, FlowMatchLCMScheduler, "-lcm"), few_pixels),
    image(CogView4Pipeline, cogview_4, partial(shifted, time_shift_type="linear")),
    image(
        CogView4ControlPipeline,
        partial(cogview_4, in_channels=8),
        partial(shifted, time_shift_type="linear"),
        control_image=PICTURE,
    ),
    image(ZImagePipeline, z_image, euler_flow),
    image(ZImageImg2ImgPipeline, z_image, euler_flow, image=PICTURE),
    # With guidance, this pipeline fails on more than one row.
    image(PRXPipeline, prx, euler_flow, use_resolution_binning=False, guidance_scale=1.0),
    larger(OmniGenPipeline, omnigen, omnigen_euler),
]
