"""Pipelines of videos and images around the autoencoder of Wan."""

from functools import partial
from pathlib import Path

from diffusers import (
    Cosmos2TextToImagePipeline,
    CosmosTransformer3DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from transformers import CLIPImageProcessor, Gemma2Config, Gemma2Model

from zoo.components import VIDEO, Unguarded, wan_vae, with_t5
from zoo.parts import WIDTH, Components, clip_vision, entry, language_settings, tokenizer

UNIPC_FLOW = partial(
    UniPCMultistepScheduler, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
)
"""Of Wan 2.1 for 480 lines."""


def wan_sizes(**changes: object) -> dict[str, object]:
    """Configuration of the transformers of Wan and of its descendants."""
    return {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": WIDTH,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 1,
        "rope_max_seq_len": 32,
        **changes,
    }


def wan(folder: Path) -> Components:
    return with_t5(transformer=WanTransformer3DModel(**wan_sizes()), vae=wan_vae())


def wan_image(folder: Path) -> Components:
    return with_t5(
        transformer=WanTransformer3DModel(**wan_sizes(in_channels=36, image_dim=WIDTH)),
        vae=wan_vae(),
        image_encoder=clip_vision(),
        image_processor=CLIPImageProcessor(crop_size=16, size=16),
    )


def skyreels(folder: Path) -> Components:
    return with_t5(transformer=SkyReelsV2Transformer3DModel(**wan_sizes()), vae=wan_vae())


def wan_two_experts(folder: Path) -> Components:
    second = WanTransformer3DModel(**wan_sizes())
    return {**wan(folder), "transformer_2": second, "boundary_ratio": 0.875}


def sana(folder: Path) -> Components:
    tokens = tokenizer()
    transformer = SanaVideoTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        sample_size=8,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    return {
        "transformer": transformer,
        "vae": wan_vae(),
        "text_encoder": Gemma2Model(Gemma2Config(**language_settings(tokens))),
        "tokenizer": tokens,
    }


def cosmos2(folder: Path) -> Components:
    transformer = CosmosTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        mlp_ratio=2,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
    )
    return with_t5(transformer=transformer, vae=wan_vae(), safety_checker=Unguarded())


short = partial(entry, medium="videos", output_type="np", max_sequence_length=16)
video = partial(short, **VIDEO)
forcing = partial(
    video,
    SkyReelsV2DiffusionForcingPipeline,
    skyreels,
    partial(UNIPC_FLOW, flow_shift=8.0),
    base_num_frames=9,
)
ENTRIES = [
    video(WanPipeline, wan, UNIPC_FLOW),
    video(WanPipeline, wan, FlowMatchEulerDiscreteScheduler, "-Euler"),
    video(WanPipeline, wan_two_experts, UNIPC_FLOW, "-2.2"),
    video(WanImageToVideoPipeline, wan_image, UNIPC_FLOW, image=Image.new("RGB", (16, 16))),
    video(SkyReelsV2Pipeline, skyreels, partial(UNIPC_FLOW, flow_shift=8.0)),
    forcing(),
    forcing(variant="-asynchronous", ar_step=1, causal_block_size=1),
    short(
        SanaVideoPipeline,
        sana,
        partial(
            DPMSolverMultistepScheduler,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=8.0,
        ),
        height=32,
        width=32,
        frames=9,
        complex_human_instruction=[],
        use_resolution_binning=False,
    ),
    short(
        Cosmos2TextToImagePipeline,
        cosmos2,
        partial(FlowMatchEulerDiscreteScheduler, use_karras_sigmas=True),
        medium="images",
        height=32,
        width=32,
    ),
]
