"""Image pipelines around a transformer, with text encoders of the CLIP and T5 kinds."""

from functools import partial
from pathlib import Path

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPAGPipeline,
    HunyuanDiTPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPAGPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
)
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextModelWithProjection,
)

from zoo.entry import Entry
from zoo.parts import (
    MASK,
    PICTURE,
    SIZE,
    WIDTH,
    Components,
    clip,
    entry,
    language_settings,
    t5,
    tokenizer,
    vae,
)

STABLE_DIFFUSION_3 = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "caption_projection_dim": 32,
    "joint_attention_dim": 2 * WIDTH,
    "pooled_projection_dim": 2 * WIDTH,
}
"""Size of the network."""


def stable_diffusion_3(folder: Path) -> Components:
    first, tokens = clip(folder, CLIPTextModelWithProjection)
    second, _ = clip(folder, CLIPTextModelWithProjection)
    third, tokens_3 = t5(2 * WIDTH)
    return {
        "transformer": SD3Transformer2DModel(**STABLE_DIFFUSION_3),
        "vae": vae(latent_channels=16, shift_factor=0.06),
        "text_encoder": first,
        "text_encoder_2": second,
        "text_encoder_3": third,
        "tokenizer": tokens,
        "tokenizer_2": tokens,
        "tokenizer_3": tokens_3,
    }


def controlled_stable_diffusion_3(folder: Path) -> Components:
    return stable_diffusion_3(folder) | {"controlnet": SD3ControlNetModel(**STABLE_DIFFUSION_3)}


def pixart(folder: Path) -> Components:
    encoder, tokens = t5()
    return {
        "transformer": PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=16,
            caption_channels=WIDTH,
        ),
        "vae": vae(),
        "text_encoder": encoder,
        "tokenizer": tokens,
    }


def hunyuan_dit(folder: Path) -> Components:
    tokens = tokenizer("$A </s>")
    settings = language_settings(tokens) | {"max_position_embeddings": 77}
    second, tokens_2 = t5()
    return {
        "transformer": HunyuanDiT2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            hidden_size=16,
            cross_attention_dim=WIDTH,
            cross_attention_dim_t5=WIDTH,
            pooled_projection_dim=16,
            activation_fn="gelu-approximate",
        ),
        "vae": vae(),
        "text_encoder": BertModel(BertConfig(**settings)),
        "tokenizer": tokens,
        "text_encoder_2": second,
        "tokenizer_2": tokens_2,
        "safety_checker": None,
        "feature_extractor": None,
    }


def aura_flow(folder: Path) -> Components:
    encoder, tokens = t5()
    return {
        "transformer": AuraFlowTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            caption_projection_dim=16,
            pos_embed_max_size=64,
        ),
        "vae": vae(),
        "text_encoder": encoder,
        "tokenizer": tokens,
    }


def cogview_3(folder: Path) -> Components:
    encoder, tokens = t5()
    return {
        "transformer": CogView3PlusTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=WIDTH,
            time_embed_dim=8,
            condition_dim=4,
            pos_embed_max_size=8,
            sample_size=8,
        ),
        "vae": vae(),
        "text_encoder": encoder,
        "tokenizer": tokens,
    }


euler_flow = partial(FlowMatchEulerDiscreteScheduler, shift=3.0)
hunyuan_ddpm = partial(DDPMScheduler, prediction_type="v_prediction", beta_schedule="scaled_linear")
cogview_ddim = partial(
    CogVideoXDDIMScheduler, prediction_type="v_prediction", timestep_spacing="trailing"
)

image = partial(entry, **SIZE)
binless = partial(image, use_resolution_binning=False)

ENTRIES: list[Entry] = [
    image(StableDiffusion3Pipeline, stable_diffusion_3, euler_flow),
    image(StableDiffusion3Img2ImgPipeline, stable_diffusion_3, euler_flow, image=PICTURE),
    image(
        StableDiffusion3InpaintPipeline,
        stable_diffusion_3,
        euler_flow,
        image=PICTURE,
        mask_image=MASK,
    ),
    image(
        StableDiffusion3PAGPipeline,
        lambda folder: stable_diffusion_3(folder) | {"pag_applied_layers": ["0"]},
        euler_flow,
    ),
    image(
        StableDiffusion3ControlNetPipeline,
        controlled_stable_diffusion_3,
        euler_flow,
        control_image=PICTURE,
    ),
    binless(PixArtAlphaPipeline, pixart, DPMSolverMultistepScheduler),
    binless(PixArtSigmaPipeline, pixart, DPMSolverMultistepScheduler),
    binless(PixArtSigmaPAGPipeline, pixart, DPMSolverMultistepScheduler),
    binless(HunyuanDiTPipeline, hunyuan_dit, hunyuan_ddpm),
    binless(HunyuanDiTPAGPipeline, hunyuan_dit, hunyuan_ddpm),
    image(AuraFlowPipeline, aura_flow, partial(FlowMatchEulerDiscreteScheduler, shift=1.73)),
    image(CogView3PlusPipeline, cogview_3, cogview_ddim),
]
