"""Components that several tiny video pipelines share, beyond those of the image pipelines."""

from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from diffusers import AutoencoderKLWan, AutoencoderOobleck

from zoo.entry import Entry
from zoo.parts import Components, t5

ENTRIES: list[Entry] = []
"""None: zoo.check asks every module."""

VIDEO: Mapping[str, object] = {"height": 16, "width": 16, "num_frames": 9}
"""The size that most of the calls ask for: of three latent frames after fourfold compression."""

SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The schedule of Stable Diffusion."""


class Unguarded:
    """In place of Cosmos's guardrail, whose models are large and a package of their own."""

    def to(self, device: object) -> Self:
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray:
        return frames


def awaken(model: torch.nn.Module) -> torch.nn.Module:
    """The model, with random numbers for the parameters that its class sets to zero.

    Without training, nothing flows through those: a sound would not depend on its latents.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def wan_vae() -> AutoencoderKLWan:
    """The autoencoder of Wan: 16 latent channels, 4 times shorter and 8 times narrower."""
    return AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


def with_t5(**models: object) -> Components:
    """The models, and a T5 encoder with its tokenizer."""
    encoder, tokens = t5()
    return {**models, "text_encoder": encoder, "tokenizer": tokens}


def oobleck(channels: int) -> AutoencoderOobleck:
    """The autoencoder of Stable Audio: stereo, of 4 samples a second, twofold compressed."""
    return AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=channels,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
