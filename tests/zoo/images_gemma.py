"""Image pipelines around a transformer, with a Gemma language model for the text."""

from functools import partial
from pathlib import Path

from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    SanaPAGPipeline,
    SanaPipeline,
    SanaSprintImg2ImgPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GemmaConfig,
    GemmaForCausalLM,
)

from zoo.entry import Entry
from zoo.parts import (
    PICTURE,
    WIDTH,
    Components,
    entry,
    language_model,
    vae,
)


def deep_compression_vae() -> AutoencoderDC:
    """The autoencoder of Sana, shrinking twice."""
    return AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )


def sana(folder: Path, **network: object) -> Components:
    encoder, tokens = language_model(Gemma2Model, Gemma2Config)
    return {
        "transformer": SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=WIDTH,
            sample_size=8,
            **network,
        ),
        "vae": deep_compression_vae(),
        "text_encoder": encoder,
        "tokenizer": tokens,
    }


def lumina(folder: Path) -> Components:
    encoder, tokens = language_model(GemmaForCausalLM, GemmaConfig)
    return {
        "transformer": LuminaNextDiT2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=16,
            num_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            cross_attention_dim=WIDTH,
        ),
        "vae": vae(blocks=4),
        "text_encoder": encoder,
        "tokenizer": tokens,
    }


def lumina_2(folder: Path) -> Components:
    encoder, tokens = language_model(Gemma2Model, Gemma2Config)
    return {
        "transformer": Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=16,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            cap_feat_dim=WIDTH,
        ),
        "vae": vae(blocks=4, shift_factor=0.06),
        "text_encoder": encoder,
        "tokenizer": tokens,
    }


euler_flow = partial(FlowMatchEulerDiscreteScheduler, shift=3.0)
dpm_flow = partial(
    DPMSolverMultistepScheduler,
    prediction_type="flow_prediction",
    use_flow_sigmas=True,
    flow_shift=3.0,
)

larger = partial(entry, height=32, width=32)
sana_image = partial(larger, use_resolution_binning=False, complex_human_instruction=None)
sprint = partial(sana, qk_norm="rms_norm_across_heads", guidance_embeds=True)

ENTRIES: list[Entry] = [
    sana_image(SanaPipeline, sana, dpm_flow),
    sana_image(SanaPAGPipeline, sana, dpm_flow),
    sana_image(SanaSprintPipeline, sprint, SCMScheduler, num_inference_steps=2),
    sana_image(
        SanaSprintImg2ImgPipeline,
        sprint,
        SCMScheduler,
        image=PICTURE,
        strength=0.8,
        intermediate_timesteps=None,
    ),
    larger(LuminaPipeline, lumina, euler_flow),
    larger(Lumina2Pipeline, lumina_2, partial(euler_flow, shift=6.0)),
]
