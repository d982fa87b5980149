"""What the scheduler hook costs: a steered call without selection over the plain call, same rows.

python benchmarks/overhead.py [--full] > benchmarks/overhead.md

The two calls alternate in one process; the reward is free and asked of finished samples only, so
that what is left is the hook. `--full` adds SDXL and SD3 sizes, which want a GPU.
"""

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from diffreward import BestOfN, steer

ROWS, DEVICE = 4, "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.float16 if DEVICE == "cuda" else torch.float32


def free(samples: Any, prompts: Any) -> torch.Tensor:
    """A reward that costs nothing."""
    return torch.zeros(len(samples))


def vae(channels: int) -> AutoencoderKL:
    """A small decoder: latents are what is timed."""
    return AutoencoderKL(latent_channels=channels, sample_size=64)


def sd15(size: int) -> tuple[DiffusionPipeline, dict[str, Any]]:
    """Random weights in the shape of Stable Diffusion 1.5."""
    unet = UNet2DConditionModel(sample_size=size, cross_attention_dim=768, attention_head_dim=8)
    pipe = StableDiffusionPipeline(
        vae=vae(4), text_encoder=None, tokenizer=None, unet=unet, scheduler=DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return pipe, {
        "prompt_embeds": torch.randn(ROWS, 77, 768),
        "height": size * pipe.vae_scale_factor,
        "width": size * pipe.vae_scale_factor,
    }


def sdxl(size: int) -> tuple[DiffusionPipeline, dict[str, Any]]:
    """Random weights in the shape of SDXL."""
    unet = UNet2DConditionModel(
        sample_size=size, block_out_channels=(320, 640, 1280), cross_attention_dim=2048,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20),
        use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae=vae(4), text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
        unet=unet, scheduler=EulerDiscreteScheduler(), force_zeros_for_empty_prompt=False,
    )  # fmt: skip
    return pipe, {
        "prompt_embeds": torch.randn(ROWS, 77, 2048),
        "pooled_prompt_embeds": torch.randn(ROWS, 1280),
        "height": size * pipe.vae_scale_factor,
        "width": size * pipe.vae_scale_factor,
    }


def sd3(size: int) -> tuple[DiffusionPipeline, dict[str, Any]]:
    """Random weights in the shape of Stable Diffusion 3 medium."""
    transformer = SD3Transformer2DModel(
        sample_size=128, patch_size=2, num_layers=24, num_attention_heads=24,
        caption_projection_dim=1536, pos_embed_max_size=192,
    )  # fmt: skip
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(16), text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    return pipe, {
        "prompt_embeds": torch.randn(ROWS, 154, 4096),
        "pooled_prompt_embeds": torch.randn(ROWS, 2048),
        "height": size * pipe.vae_scale_factor,
        "width": size * pipe.vae_scale_factor,
    }


def bundled() -> tuple[DiffusionPipeline, dict[str, Any]]:
    """The small text-to-image model of this repository."""
    pipe = StableDiffusionPipeline.from_pretrained("assets/digits")
    return pipe, {"prompt": ["a red seven on a blue background"] * ROWS}


def seconds(call: Callable[[], Any]) -> float:
    """Of wall time, with the device's work done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(pipe: DiffusionPipeline, call: dict[str, Any], steps: int, repeats: int) -> str:
    """A row's numbers: plain seconds, steered seconds, their ratio."""
    pipe.set_progress_bar_config(disable=True)
    pipe.to(DEVICE, DTYPE)
    rows = {
        name: value.to(DEVICE, DTYPE) if isinstance(value, torch.Tensor) else value
        for name, value in call.items()
    }
    # Each row is a system of one particle: the same rows, through hook and watched network.
    steered = steer(pipe, free, BestOfN(1))
    call = rows | {"num_inference_steps": steps, "output_type": "pt", "guidance_scale": 1.0}
    plain, hooked = [], []
    for i in range(repeats + 1):
        # Whatever comes second finds another cache and another clock: they take turns.
        timed = [(plain, lambda: pipe(**call)), (hooked, lambda: steered(**call))]
        for times, once in timed[:: 1 if i % 2 else -1]:
            times.append(seconds(once))
    plain, hooked = plain[1:], hooked[1:]
    quotient = median(b / a for a, b in zip(plain, hooked, strict=True))
    return f"{median(plain):.3f} | {median(hooked):.3f} | {quotient:.3f}"


def main() -> None:
    """Print a table in Markdown."""
    sizes = {
        "bundled digits, 10 steps": (bundled, (), 10, 40),
        "SD 1.5, latents 16 x 16, 2 steps": (sd15, (16,), 2, 8),
    }
    if "--full" in sys.argv:
        sizes |= {
            "SD 1.5, latents 64 x 64, 20 steps": (sd15, (64,), 20, 5),
            "SDXL, latents 128 x 128, 10 steps": (sdxl, (128,), 10, 5),
            "SD3 medium, latents 128 x 128, 10 steps": (sd3, (128,), 10, 5),
        }
    print(
        "# What the hook costs\n\nMade by `python benchmarks/overhead.py`: a steered call without "
        f"selection over the plain call, {ROWS} rows, random weights but for the bundled model, "
        f"{DEVICE}, {DTYPE}; median seconds, and the median ratio of pairs that alternate.\n\n"
        "| pipeline | plain | steered | ratio |\n| --- | --- | --- | --- |"
    )
    for name, (make, arguments, steps, repeats) in sizes.items():
        pipe, call = make(*arguments)
        print(f"| {name} | {ratio(pipe, call, steps, repeats)} |", flush=True)


if __name__ == "__main__":
    main()
