"""Pipelines of videos that match flows, each with an autoencoder of its own."""

from functools import partial
from pathlib import Path

from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLMagvit,
    AutoencoderKLMochi,
    ClassifierFreeGuidance,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
)
from transformers import (
    ByT5Tokenizer,
    LlamaConfig,
    LlamaModel,
    Qwen2Config,
    Qwen2Model,
    T5Config,
    T5EncoderModel,
)

from zoo.components import VIDEO, awaken, with_t5
from zoo.parts import WIDTH, Components, clip, entry, language_settings, tokenizer

SHIFTED_EULER = partial(FlowMatchEulerDiscreteScheduler, shift=7.0)
"""Of HunyuanVideo."""


def qwen() -> Components:
    """A plain Qwen2, in place of the one that also sees: no picture is shown to it."""
    tokens = tokenizer()
    return {
        "text_encoder": Qwen2Model(Qwen2Config(**language_settings(tokens))),
        "tokenizer": tokens,
    }


def mochi(folder: Path) -> Components:
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    vae = AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
    )
    return with_t5(transformer=transformer, vae=vae)


def hunyuan_vae(latent_channels: int) -> AutoencoderKLHunyuanVideo:
    return AutoencoderKLHunyuanVideo(
        latent_channels=latent_channels,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
    )


def hunyuan(folder: Path) -> Components:
    tokens = tokenizer()
    encoder, tokens_2 = clip(folder, length=77)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        guidance_embeds=True,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(2, 4, 4),
    )
    return {
        "transformer": transformer,
        "vae": hunyuan_vae(4),
        "text_encoder": LlamaModel(LlamaConfig(**language_settings(tokens))),
        "tokenizer": tokens,
        "text_encoder_2": encoder,
        "tokenizer_2": tokens_2,
    }


def hunyuan_15(folder: Path) -> Components:
    glyphs = ByT5Tokenizer()
    glyph_encoder = T5EncoderModel(
        T5Config(
            d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2, vocab_size=len(glyphs)
        )
    )
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
    )
    autoencoder = AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    # The mask of its attention has no room for heads beside more than one row.
    autoencoder.enable_slicing()
    return {
        **qwen(),
        "transformer": transformer,
        "vae": autoencoder,
        "text_encoder_2": glyph_encoder,
        "tokenizer_2": glyphs,
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }


def easy_animate(folder: Path) -> Components:
    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=1,
        patch_size=2,
        sample_width=16,
        sample_height=16,
    )
    autoencoder = AutoencoderKLMagvit(
        down_block_types=("SpatialDownBlock3D",) + ("SpatialTemporalDownBlock3D",) * 3,
        up_block_types=("SpatialUpBlock3D",) + ("SpatialTemporalUpBlock3D",) * 3,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    return {**qwen(), "transformer": transformer, "vae": autoencoder}


def kandinsky_5(folder: Path) -> Components:
    encoder, tokens = clip(folder, length=77)
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=16,
        out_visual_dim=4,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(1, 1, 2),
        visual_cond=False,
        attention_type="regular",
    )
    return {
        **qwen(),
        "transformer": awaken(transformer),
        "vae": hunyuan_vae(4),
        "text_encoder_2": encoder,
        "tokenizer_2": tokens,
    }


video = partial(entry, medium="videos", output_type="np", **VIDEO)
short = partial(video, max_sequence_length=16)
ENTRIES = [
    short(
        MochiPipeline,
        mochi,
        partial(FlowMatchEulerDiscreteScheduler, invert_sigmas=True),
        num_frames=7,
    ),
    short(
        HunyuanVideoPipeline,
        hunyuan,
        SHIFTED_EULER,
        prompt_template={"template": "{}", "crop_start": 0},
    ),
    video(HunyuanVideo15Pipeline, hunyuan_15, SHIFTED_EULER),
    video(
        EasyAnimatePipeline,
        easy_animate,
        FlowMatchEulerDiscreteScheduler,
        num_frames=5,
        negative_prompt="",
    ),
    video(
        Kandinsky5T2VPipeline,
        kandinsky_5,
        SHIFTED_EULER,
        num_frames=5,
        height=32,
        width=32,
        max_sequence_length=1024,  # Instructions precede the prompt, and a letter is a token.
    ),
]
