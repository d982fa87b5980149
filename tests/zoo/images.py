"""Image pipelines of the Stable Diffusion family: a U-Net and CLIP text encoders."""

from functools import partial
from pathlib import Path

import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelImg2ImgPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LDMTextToImagePipeline,
    MarigoldDepthPipeline,
    PNDMScheduler,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImageVariationPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPAGPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
)
from transformers import CLIPImageProcessor, CLIPTextModelWithProjection

from zoo.entry import Entry
from zoo.parts import (
    MASK,
    PICTURE,
    SIZE,
    WIDTH,
    Components,
    clip,
    clip_vision,
    entry,
    unet,
    vae,
    without_prompt,
)

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Of Stable Diffusion."""
ddim = partial(DDIMScheduler, **NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
ddpm = partial(DDPMScheduler, **NOISE, clip_sample=False)
pndm = partial(PNDMScheduler, **NOISE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
euler = partial(EulerDiscreteScheduler, **NOISE, timestep_spacing="leading", steps_offset=1)

XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
    "cross_attention_dim": 2 * WIDTH,
    "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
"""What the network of Stable Diffusion XL has more."""


def text_to_image(folder: Path, length: int = 16, **network: object) -> Components:
    """The parts that all pipelines with one CLIP text encoder need."""
    encoder, tokens = clip(folder, length=length)
    return {"vae": vae(), "text_encoder": encoder, "tokenizer": tokens, "unet": unet(**network)}


def stable_diffusion(folder: Path, **network: object) -> Components:
    return text_to_image(folder, **network) | {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def stable_diffusion_xl(folder: Path, **network: object) -> Components:
    second, tokens = clip(folder, CLIPTextModelWithProjection)
    return text_to_image(folder, **XL | network) | {
        "text_encoder_2": second,
        "tokenizer_2": tokens,
        "add_watermarker": False,
    }


def control_net(**config: object) -> ControlNetModel:
    control = ControlNetModel.from_unet(
        unet(**config), conditioning_embedding_out_channels=(8, 16), conditioning_channels=3
    )
    # The last layers begin at zero, which would hide the control.
    for block in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        block.reset_parameters()
    return control


def with_control(folder: Path) -> Components:
    return stable_diffusion(folder) | {"controlnet": control_net()}


def xl_with_control(folder: Path) -> Components:
    return stable_diffusion_xl(folder) | {"controlnet": control_net(**XL)}


def with_adapter(folder: Path) -> Components:
    adapter = T2IAdapter(in_channels=3, channels=(16, 32), num_res_blocks=1, downscale_factor=2)
    return stable_diffusion(folder) | {"adapter": adapter}


def upscaling(folder: Path) -> Components:
    return text_to_image(folder, in_channels=7, num_class_embeds=1000) | {
        "vae": vae(scaling_factor=0.08333),
        "low_res_scheduler": ddpm(),
    }


def image_variation(folder: Path) -> Components:
    parts = stable_diffusion(folder)
    del parts["text_encoder"], parts["tokenizer"]
    return parts | {
        "image_encoder": clip_vision(),
        "feature_extractor": CLIPImageProcessor(size=16, crop_size=16),
    }


def ldm(folder: Path) -> Components:
    parts = text_to_image(folder, length=77)
    return {
        "vqvae": parts["vae"],
        "bert": parts["text_encoder"],
        "tokenizer": parts["tokenizer"],
        "unet": parts["unet"],
    }


consistent = partial(stable_diffusion, time_cond_proj_dim=16)

ENTRIES: list[Entry] = [
    entry(StableDiffusionPipeline, stable_diffusion, ddim),
    entry(StableDiffusionPipeline, stable_diffusion, pndm, "-pndm"),
    entry(StableDiffusionImg2ImgPipeline, stable_diffusion, pndm, image=PICTURE),
    entry(
        StableDiffusionInpaintPipeline,
        partial(stable_diffusion, in_channels=9),
        pndm,
        image=PICTURE,
        mask_image=MASK,
        **SIZE,
    ),
    entry(
        StableDiffusionInstructPix2PixPipeline,
        partial(stable_diffusion, in_channels=8),
        partial(EulerAncestralDiscreteScheduler, **NOISE),
        image=PICTURE,
    ),
    entry(
        StableDiffusionDepth2ImgPipeline,
        lambda folder: (
            text_to_image(folder, in_channels=5)
            | {"depth_estimator": None, "feature_extractor": None}
        ),
        pndm,
        image=PICTURE,
        depth_map=torch.linspace(0, 1, 256).view(1, 16, 16),
    ),
    entry(StableDiffusionUpscalePipeline, upscaling, ddim, image=PICTURE),
    without_prompt(
        entry(StableDiffusionImageVariationPipeline, image_variation, pndm, image=PICTURE)
    ),
    entry(StableDiffusionPAGPipeline, stable_diffusion, ddim),
    entry(StableDiffusionControlNetPipeline, with_control, pndm, image=PICTURE),
    entry(
        StableDiffusionControlNetImg2ImgPipeline,
        with_control,
        pndm,
        image=PICTURE,
        control_image=PICTURE,
    ),
    entry(StableDiffusionControlNetPAGPipeline, with_control, pndm, image=PICTURE),
    entry(
        StableDiffusionAdapterPipeline, with_adapter, ddim, image=PICTURE, output_type="np", **SIZE
    ),
    entry(StableDiffusionXLPipeline, stable_diffusion_xl, euler),
    entry(
        StableDiffusionXLImg2ImgPipeline, stable_diffusion_xl, euler, image=PICTURE, strength=0.8
    ),
    entry(
        StableDiffusionXLInpaintPipeline,
        stable_diffusion_xl,
        euler,
        image=PICTURE,
        mask_image=MASK,
        **SIZE,
    ),
    entry(StableDiffusionXLPAGPipeline, stable_diffusion_xl, euler),
    entry(StableDiffusionXLControlNetPipeline, xl_with_control, euler, image=PICTURE),
    entry(LatentConsistencyModelPipeline, consistent, partial(LCMScheduler, **NOISE)),
    entry(
        LatentConsistencyModelImg2ImgPipeline,
        consistent,
        partial(LCMScheduler, **NOISE),
        image=PICTURE,
    ),
    entry(LDMTextToImagePipeline, ldm, ddim, output_type="np", height=64, width=64),
    without_prompt(
        entry(
            MarigoldDepthPipeline,
            partial(text_to_image, in_channels=8),
            partial(ddim, prediction_type="v_prediction"),
            medium="tensor",
            image=PICTURE,
            processing_resolution=0,
        )
    ),
]
