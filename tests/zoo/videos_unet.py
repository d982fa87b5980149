"""Pipelines of videos with U-Nets."""

from functools import partial
from pathlib import Path

from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKLTemporalDecoder,
    DDIMScheduler,
    EulerDiscreteScheduler,
    MotionAdapter,
    StableVideoDiffusionPipeline,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from zoo.components import SCALED_LINEAR
from zoo.parts import WIDTH, Components, clip, entry, unet, vae, without_prompt


def animatediff(folder: Path) -> Components:
    encoder, tokens = clip(folder)
    network = unet()
    adapter = MotionAdapter(
        block_out_channels=network.config.block_out_channels,
        motion_layers_per_block=1,
        motion_norm_num_groups=8,
        motion_num_attention_heads=2,
    )
    return {
        "text_encoder": encoder,
        "tokenizer": tokens,
        "unet": network,
        "motion_adapter": adapter,
        "vae": vae(),
    }


def modelscope(folder: Path) -> Components:
    encoder, tokens = clip(folder)
    network = UNet3DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return {"text_encoder": encoder, "tokenizer": tokens, "unet": network, "vae": vae()}


def stable_video(folder: Path) -> Components:
    network = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=WIDTH,
        num_attention_heads=2,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )
    autoencoder = AutoencoderKLTemporalDecoder(
        block_out_channels=[32, 32], down_block_types=["DownEncoderBlock2D"] * 2
    )
    # The pipeline resizes pictures for CLIP by itself.
    eyes = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_attention_heads=2,
        num_hidden_layers=1,
        image_size=224,
        patch_size=112,
        projection_dim=WIDTH,
    )
    return {
        "unet": network,
        "vae": autoencoder,
        "image_encoder": CLIPVisionModelWithProjection(eyes),
        "feature_extractor": CLIPImageProcessor(),
    }


STABLE_VIDEO_EULER = partial(
    EulerDiscreteScheduler,
    **SCALED_LINEAR,
    prediction_type="v_prediction",
    sigma_min=0.002,
    sigma_max=700.0,
    steps_offset=1,
    timestep_spacing="leading",
    timestep_type="continuous",
    use_karras_sigmas=True,
)
video = partial(entry, medium="videos", output_type="np", height=16, width=16, num_frames=2)
ENTRIES = [
    video(
        AnimateDiffPipeline,
        animatediff,
        partial(
            DDIMScheduler,
            beta_start=0.00085,
            beta_end=0.012,
            steps_offset=1,
            clip_sample=False,
        ),
    ),
    video(
        TextToVideoSDPipeline,
        modelscope,
        partial(DDIMScheduler, **SCALED_LINEAR, clip_sample=False),
    ),
    without_prompt(
        video(
            StableVideoDiffusionPipeline,
            stable_video,
            STABLE_VIDEO_EULER,
            image=Image.new("RGB", (16, 16)),
        )
    ),
]
