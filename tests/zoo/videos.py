"""Pipelines of videos that denoise by the schedules of DDPM and EDM."""

from functools import partial
from pathlib import Path

from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLAllegro,
    AutoencoderKLCogVideoX,
    AutoencoderKLCosmos,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    DDIMScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    LattePipeline,
    LatteTransformer3DModel,
)

from zoo.components import VIDEO, Unguarded, with_t5
from zoo.parts import WIDTH, Components, entry, vae

SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
COGVIDEOX = {
    **SCALED_LINEAR,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def cogvideox(folder: Path) -> Components:
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=16,
    )
    autoencoder = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return with_t5(transformer=transformer, vae=autoencoder)


def latte(folder: Path) -> Components:
    transformer = LatteTransformer3DModel(
        sample_size=8,
        video_length=2,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=WIDTH,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        activation_fn="gelu-approximate",
    )
    return with_t5(transformer=transformer, vae=vae())


def allegro(folder: Path) -> Components:
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=WIDTH,
    )
    autoencoder = AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    # It decodes in tiles only, one row at a time; those it comes with are 320 pixels wide.
    autoencoder.enable_tiling()
    autoencoder.enable_slicing()
    autoencoder.kernel = autoencoder.stride = (8, 16, 16)
    return with_t5(transformer=transformer, vae=autoencoder)


def cosmos(folder: Path) -> Components:
    transformer = CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        mlp_ratio=2,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
    )
    autoencoder = AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8,) * 4,
        decode_block_out_channels=(8,) * 4,
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    return with_t5(transformer=transformer, vae=autoencoder, safety_checker=Unguarded())


video = partial(entry, medium="videos", output_type="np")
sized = partial(video, **VIDEO)
short = partial(sized, max_sequence_length=16)
ENTRIES = [
    short(
        CogVideoXPipeline,
        cogvideox,
        partial(CogVideoXDDIMScheduler, **COGVIDEOX, snr_shift_scale=3.0),
    ),
    short(
        CogVideoXPipeline,
        cogvideox,
        partial(CogVideoXDPMScheduler, **COGVIDEOX, snr_shift_scale=1.0),
        "-DPM",
        use_dynamic_cfg=True,
    ),
    video(
        LattePipeline,
        latte,
        partial(DDIMScheduler, clip_sample=False),
        height=16,
        width=16,
        video_length=2,
        clean_caption=False,
    ),
    short(
        AllegroPipeline, allegro, EulerAncestralDiscreteScheduler, num_frames=8, clean_caption=False
    ),
    short(
        CosmosTextToWorldPipeline,
        cosmos,
        partial(EDMEulerScheduler, sigma_data=0.5, final_sigmas_type="sigma_min"),
        height=32,
        width=32,
    ),
]
SKIPPED = {
    "I2VGenXLPipeline": "deprecated",
    "HeliosPipeline": "schedules stages of several resolutions: not looked at",
    "MotifVideoPipeline": "not looked at",
    "SanaImageToVideoPipeline": "steps like SanaVideoPipeline",
    "CogVideoXImageToVideoPipeline": "steps like CogVideoXPipeline",
}
"""Pipelines of videos without an entry, and why."""
