"""Image pipelines around a transformer, with a Qwen model that could see for the text."""

from functools import partial
from pathlib import Path

from diffusers import (
    AdaptiveProjectedMixGuidance,
    AutoencoderKLHunyuanImage,
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    Krea2Pipeline,
    QwenImageImg2ImgPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.models.transformers.transformer_krea2 import Krea2Transformer2DModel
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLModel,
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
    language_settings,
    t5,
    tokenizer,
    vae,
)


def qwen_vae() -> AutoencoderKLQwenImage:
    """The autoencoder of Qwen-Image, shrinking four times."""
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def qwen_vl() -> tuple[Qwen2_5_VLForConditionalGeneration, PreTrainedTokenizerFast]:
    """Text encoder that could see, and tokenizer."""
    tokens = tokenizer()
    rotary = {"rope_type": "default", "mrope_section": [2, 2, 4]}
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    config = Qwen2_5_VLConfig(
        text_config=language_settings(tokens) | {"rope_parameters": rotary}, vision_config=vision
    )
    return Qwen2_5_VLForConditionalGeneration(config), tokens


def qwen_image(folder: Path) -> Components:
    encoder, tokens = qwen_vl()
    return {
        "transformer": QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(8, 4, 4),
        ),
        "vae": qwen_vae(),
        "text_encoder": encoder,
        "tokenizer": tokens,
    }


def kandinsky_5(folder: Path) -> Components:
    encoder, tokens = qwen_vl()
    second, tokens_2 = clip(folder, length=77)
    return {
        "transformer": Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=WIDTH,
            in_text_dim2=WIDTH,
            time_dim=16,
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(2, 2, 4),
        ),
        "vae": vae(blocks=4),
        "text_encoder": encoder,
        "tokenizer": tokens,
        "text_encoder_2": second,
        "tokenizer_2": tokens_2,
    }


def hunyuan_image(folder: Path) -> Components:
    encoder, tokens = qwen_vl()
    second, tokens_2 = t5()
    return {
        "transformer": HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            patch_size=(1, 1),
            text_embed_dim=WIDTH,
            text_embed_2_dim=WIDTH,
            rope_axes_dim=(4, 4),
        ),
        "vae": AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32),
            layers_per_block=1,
            spatial_compression_ratio=2,
            sample_size=16,
            scaling_factor=0.5,
        ),
        "text_encoder": encoder,
        "tokenizer": tokens,
        "text_encoder_2": second,
        "tokenizer_2": tokens_2,
        "guider": AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
        "ocr_guider": AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
    }


def krea(folder: Path) -> Components:
    tokens = tokenizer()
    rotary = {"rope_type": "default", "mrope_section": [2, 2, 4], "mrope_interleaved": True}
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(
        text_config=language_settings(tokens) | {"rope_parameters": rotary}, vision_config=vision
    )
    return {
        "transformer": Krea2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=32,
            timestep_embed_dim=8,
            text_hidden_dim=WIDTH,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
        ),
        "vae": qwen_vae(),
        "text_encoder": Qwen3VLModel(config),
        "tokenizer": tokens,
        "text_encoder_select_layers": (1, 2),
    }


def few_pixels(pipe: DiffusionPipeline) -> None:
    """Kandinsky's pipeline takes the nearest of its own sizes."""
    pipe.resolutions = [(32, 32)]


euler_flow = partial(FlowMatchEulerDiscreteScheduler, shift=3.0)
shifted = partial(euler_flow, use_dynamic_shifting=True)
"""Shifts the noise levels by the number of tokens."""
image = partial(entry, **SIZE)

ENTRIES: list[Entry] = [
    image(QwenImagePipeline, qwen_image, shifted, negative_prompt="a dog"),
    image(QwenImageImg2ImgPipeline, qwen_image, shifted, image=PICTURE),
    image(Krea2Pipeline, krea, shifted),
    image(HunyuanImagePipeline, hunyuan_image, euler_flow),
    adjusted(image(Kandinsky5T2IPipeline, kandinsky_5, euler_flow), few_pixels),
]
