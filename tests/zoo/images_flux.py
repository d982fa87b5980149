"""Image pipelines of the Flux family: two streams of tokens that become one."""

from functools import partial
from pathlib import Path

from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    BriaPipeline,
    BriaTransformer2DModel,
    ChromaImg2ImgPipeline,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
)
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
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
    language_model,
    language_settings,
    t5,
    tokenizer,
    vae,
)

NETWORK = {
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (4, 4, 8),
}
FLUX = NETWORK | {"pooled_projection_dim": WIDTH, "guidance_embeds": True}


def latents() -> AutoencoderKL:
    """An autoencoder of one channel, of which four make a token."""
    return vae(latent_channels=1, shift_factor=0.06)


def flux(folder: Path, **network: object) -> Components:
    first, tokens = clip(folder)
    second, tokens_2 = t5()
    return {
        "transformer": FluxTransformer2DModel(**FLUX | network),
        "vae": latents(),
        "text_encoder": first,
        "text_encoder_2": second,
        "tokenizer": tokens,
        "tokenizer_2": tokens_2,
    }


def controlled_flux(folder: Path) -> Components:
    return flux(folder) | {"controlnet": FluxControlNetModel(**FLUX)}


def chroma(folder: Path) -> Components:
    encoder, tokens = t5()
    network = ChromaTransformer2DModel(
        **NETWORK,
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return {"transformer": network, "vae": latents(), "text_encoder": encoder, "tokenizer": tokens}


def ovis(folder: Path) -> Components:
    encoder, tokens = language_model(Qwen3Model, Qwen3Config)
    network = OvisImageTransformer2DModel(**NETWORK, out_channels=4)
    return {"transformer": network, "vae": latents(), "text_encoder": encoder, "tokenizer": tokens}


def bria(folder: Path) -> Components:
    encoder, tokens = t5()
    return {
        "transformer": BriaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=None,
            axes_dims_rope=(0, 4, 4),
        ),
        "vae": vae(shift_factor=0.0),
        "text_encoder": encoder,
        "tokenizer": tokens,
    }


def flux_2(guidance_embeds: bool) -> Components:
    size = {
        "in_channels": 16,
        "joint_attention_dim": 2 * WIDTH,
        "axes_dims_rope": (4, 4, 4, 4),
        "guidance_embeds": guidance_embeds,
    }
    return {
        "transformer": Flux2Transformer2DModel(**NETWORK | size),
        "vae": AutoencoderKLFlux2(
            sample_size=16,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
        ),
    }


def flux_2_dev(folder: Path) -> Components:
    tokens = tokenizer()
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    text = {"model_type": "mistral", **language_settings(tokens)}
    config = Mistral3Config(text_config=text, vision_config=vision)
    encoder = Mistral3ForConditionalGeneration(config)
    return flux_2(guidance_embeds=True) | {"text_encoder": encoder, "tokenizer": tokens}


def flux_2_klein(folder: Path) -> Components:
    encoder, tokens = language_model(Qwen3ForCausalLM, Qwen3Config)
    return flux_2(guidance_embeds=False) | {"text_encoder": encoder, "tokenizer": tokens}


shifted = partial(FlowMatchEulerDiscreteScheduler, use_dynamic_shifting=True, shift=3.0)
"""Shifts the noise levels by the number of tokens."""
image = partial(entry, **SIZE)

ENTRIES: list[Entry] = [
    image(FluxPipeline, flux, shifted),
    image(
        FluxPipeline,
        partial(flux, guidance_embeds=False),
        shifted,
        "-true-cfg",
        true_cfg_scale=3.0,
        negative_prompt="a dog",
    ),
    image(FluxImg2ImgPipeline, flux, shifted, image=PICTURE),
    image(FluxInpaintPipeline, flux, shifted, image=PICTURE, mask_image=MASK),
    image(
        FluxFillPipeline,
        # The tokens of the latents, of the masked picture, and of the mask.
        partial(flux, in_channels=4 + 4 + 16, out_channels=4),
        shifted,
        image=PICTURE,
        mask_image=MASK,
    ),
    image(
        FluxControlPipeline,
        partial(flux, in_channels=4 + 4, out_channels=4),
        shifted,
        control_image=PICTURE,
    ),
    image(FluxKontextPipeline, flux, shifted, image=PICTURE, _auto_resize=False, max_area=256),
    image(FluxControlNetPipeline, controlled_flux, shifted, control_image=PICTURE),
    image(ChromaPipeline, chroma, FlowMatchEulerDiscreteScheduler),
    image(ChromaImg2ImgPipeline, chroma, FlowMatchEulerDiscreteScheduler, image=PICTURE),
    image(BriaPipeline, bria, partial(FlowMatchEulerDiscreteScheduler, shift=3.0)),
    image(OvisImagePipeline, ovis, shifted),
    image(Flux2Pipeline, flux_2_dev, shifted, text_encoder_out_layers=(1, 2)),
    image(Flux2KleinPipeline, flux_2_klein, shifted, text_encoder_out_layers=(1, 2)),
]
