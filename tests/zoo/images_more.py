"""Image pipelines around other U-Nets: cascades, pixels, Kandinsky."""

from functools import partial
from pathlib import Path

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    IFImg2ImgPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
    Kandinsky3Img2ImgPipeline,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableUnCLIPPipeline,
    UnCLIPScheduler,
)
from diffusers.models import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
    StableUnCLIPImageNormalizer,
)
from transformers import CLIPImageProcessor, CLIPTextModelWithProjection

from zoo.entry import Entry
from zoo.parts import (
    PICTURE,
    SIZE,
    WIDTH,
    Components,
    clip,
    clip_vision,
    entry,
    movq,
    t5,
    unet,
    vae,
    without_prompt,
)

cosine_ddpm = partial(DDPMScheduler, beta_schedule="squaredcos_cap_v2")
learned_noise = partial(cosine_ddpm, variance_type="learned_range")
EMBEDDING = torch.linspace(-1, 1, WIDTH).view(1, WIDTH)
"""In place of an embedding that another pipeline makes."""

ATTENTION = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
    "encoder_hid_dim": WIDTH,
}
"""Blocks of the U-Nets of Kandinsky 2.2 and of IF."""


def kandinsky(folder: Path) -> Components:
    network = unet(
        **ATTENTION, out_channels=8, addition_embed_type="image", encoder_hid_dim_type="image_proj"
    )
    return {"unet": network, "movq": movq()}


def prior() -> PriorTransformer:
    network = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        embedding_dim=WIDTH,
        num_embeddings=16,
        additional_embeddings=4,
    )
    # The scale of the embeddings comes with the weights; it begins at zero.
    torch.nn.init.ones_(network.clip_std)
    return network


def kandinsky_prior(folder: Path) -> Components:
    encoder, tokens = clip(folder, CLIPTextModelWithProjection)
    return {
        "prior": prior(),
        "image_encoder": clip_vision(),
        "text_encoder": encoder,
        "tokenizer": tokens,
        "image_processor": CLIPImageProcessor(size=16, crop_size=16),
    }


def kandinsky_3(folder: Path) -> Components:
    encoder, tokens = t5()
    network = Kandinsky3UNet(
        time_embedding_dim=8,
        groups=2,
        attention_head_dim=8,
        layers_per_block=3,
        block_out_channels=(16, 32),
        cross_attention_dim=WIDTH,
        encoder_hid_dim=WIDTH,
    )
    return {"unet": network, "movq": movq(), "text_encoder": encoder, "tokenizer": tokens}


def deepfloyd(folder: Path, **network: object) -> Components:
    encoder, tokens = t5()
    pixels = {"sample_size": 16, "in_channels": 3, "out_channels": 6}
    text = {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}
    return {
        "unet": unet(**ATTENTION | pixels | text | network),
        "text_encoder": encoder,
        "tokenizer": tokens,
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
        "requires_safety_checker": False,
    }


def deepfloyd_super_resolution(folder: Path) -> Components:
    parts = deepfloyd(folder, in_channels=6, class_embed_type="timestep")
    return parts | {"image_noising_scheduler": cosine_ddpm()}


def cascade(folder: Path, channels: int, **config: object) -> tuple[StableCascadeUNet, Components]:
    """A network of one stage, and the text encoder that both stages have."""
    encoder, tokens = clip(folder, CLIPTextModelWithProjection)
    network = StableCascadeUNet(
        in_channels=channels,
        out_channels=channels,
        conditioning_dim=WIDTH,
        block_out_channels=(32, 32),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        clip_text_pooled_in_channels=WIDTH,
        dropout=(0.1, 0.1),
        **config,
    )
    return network, {"text_encoder": encoder, "tokenizer": tokens}


def cascade_prior(folder: Path) -> Components:
    network, text = cascade(
        folder, 16, switch_level=(False,), clip_text_in_channels=WIDTH, clip_image_in_channels=WIDTH
    )
    return text | {"prior": network}


def cascade_decoder(folder: Path) -> Components:
    types = (("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),) * 2
    network, text = cascade(
        folder, 4, switch_level=None, block_types_per_layer=types, effnet_in_channels=16
    )
    decoder = PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=8, embed_dim=16)
    return text | {"decoder": network, "vqgan": decoder, "latent_dim_scale": 4.0}


def unclip(folder: Path) -> Components:
    encoder, tokens = clip(folder)
    prior_encoder, prior_tokens = clip(folder, CLIPTextModelWithProjection)
    return {
        "prior_tokenizer": prior_tokens,
        "prior_text_encoder": prior_encoder,
        "prior": prior(),
        "prior_scheduler": UnCLIPScheduler(prediction_type="sample", clip_sample=True),
        "image_normalizer": StableUnCLIPImageNormalizer(WIDTH),
        "image_noising_scheduler": cosine_ddpm(),
        "tokenizer": tokens,
        "text_encoder": encoder,
        "unet": unet(
            class_embed_type="projection", projection_class_embeddings_input_dim=2 * WIDTH
        ),
        "vae": vae(),
    }


v22_ddpm = partial(DDPMScheduler, beta_start=0.00085, beta_end=0.012, variance_type="learned_range")
PRIOR = {"image_embeds": EMBEDDING, "negative_image_embeds": -EMBEDDING}

SKIPPED: dict[str, str] = {
    "KolorsPipeline": "needs the package sentencepiece",
    "KolorsPAGPipeline": "needs the package sentencepiece",
    "GlmImagePipeline": "not tried: begins with a language model that writes image tokens",
    "QwenImageEditPipeline": "not tried: needs the image processor of a vision-language model",
    "LEditsPPPipelineStableDiffusion": "not tried: inverts a picture before it generates",
}
"""Not made, and why; image pipelines that are absent here were not considered."""

ENTRIES: list[Entry] = [
    without_prompt(
        entry(KandinskyV22Pipeline, kandinsky, v22_ddpm, output_type="np", **PRIOR, **SIZE)
    ),
    without_prompt(
        entry(
            KandinskyV22Img2ImgPipeline,
            kandinsky,
            DDIMScheduler,
            image=PICTURE,
            strength=0.8,
            **PRIOR,
            **SIZE,
        )
    ),
    entry(
        KandinskyV22PriorPipeline,
        kandinsky_prior,
        partial(UnCLIPScheduler, prediction_type="sample", clip_sample_range=5.0),
        medium="tensor",
    ),
    entry(Kandinsky3Pipeline, kandinsky_3, cosine_ddpm, output_type="np", **SIZE),
    entry(Kandinsky3Img2ImgPipeline, kandinsky_3, cosine_ddpm, image=PICTURE, strength=0.8),
    entry(IFPipeline, deepfloyd, learned_noise, output_type="np"),
    entry(IFImg2ImgPipeline, deepfloyd, learned_noise, output_type="np", image=PICTURE),
    entry(
        IFSuperResolutionPipeline,
        deepfloyd_super_resolution,
        learned_noise,
        output_type="np",
        image=PICTURE,
        **SIZE,
    ),
    entry(
        StableCascadePriorPipeline,
        cascade_prior,
        DDPMWuerstchenScheduler,
        medium="tensor",
        height=256,
        width=256,
    ),
    entry(
        StableCascadeDecoderPipeline,
        cascade_decoder,
        DDPMWuerstchenScheduler,
        image_embeddings=torch.linspace(-1, 1, 64).view(1, 16, 2, 2),
    ),
    entry(StableUnCLIPPipeline, unclip, DDIMScheduler, prior_num_inference_steps=3),
]
