"""Pipelines of Stable Audio."""

from functools import partial
from pathlib import Path

from diffusers import (
    AutoencoderSAME,
    CosineDPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableAudio3DiTModel,
    StableAudio3Pipeline,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)
from diffusers.pipelines.stable_audio_3 import StableAudio3DurationEmbedder
from diffusers.utils import is_torchsde_available
from transformers import T5GemmaConfig, T5GemmaEncoderModel

from zoo.components import awaken, oobleck, with_t5
from zoo.parts import WIDTH, Components, entry, language_settings, tokenizer


def stable_audio(folder: Path) -> Components:
    transformer = StableAudioDiTModel(
        sample_size=8,
        in_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        out_channels=4,
        cross_attention_dim=8,
        time_proj_dim=8,
        global_states_input_dim=16,
        cross_attention_input_dim=8,
    )
    projection = StableAudioProjectionModel(
        text_encoder_dim=WIDTH, conditioning_dim=8, min_value=0, max_value=32
    )
    return with_t5(transformer=transformer, projection_model=projection, vae=oobleck(4))


def stable_audio_3(folder: Path) -> Components:
    tokens = tokenizer()
    settings = language_settings(tokens) | {"layer_types": ["full_attention"] * 2}
    config = T5GemmaConfig(encoder=settings, decoder=settings, is_encoder_decoder=False)
    transformer = StableAudio3DiTModel(
        io_channels=8,
        embed_dim=32,
        depth=1,
        num_heads=2,
        cond_token_dim=WIDTH,
        global_cond_dim=WIDTH,
        local_add_cond_dim=9,
        timestep_features_dim=16,
        ff_mult=2,
        num_memory_tokens=2,
    )
    autoencoder = AutoencoderSAME(
        patch_size=2,
        encoder_channels=8,
        encoder_c_mults=(2,),
        encoder_strides=(2,),
        encoder_transformer_depths=(1,),
        latent_dim=8,
        dim_heads=4,
        ff_mult=2,
        sampling_rate=16,
    )
    return {
        "text_encoder": T5GemmaEncoderModel(config),
        "tokenizer": tokens,
        "duration_embedder": StableAudio3DurationEmbedder(output_dim=WIDTH, fourier_dim=16),
        "transformer": awaken(transformer),
        "vae": awaken(autoencoder),
    }


sound = partial(entry, medium="audio")
EDM = {"sigma_data": 1.0, "sigma_schedule": "exponential", "prediction_type": "v_prediction"}
ENTRIES = [
    sound(
        StableAudioPipeline,
        stable_audio,
        partial(EDMDPMSolverMultistepScheduler, **EDM, sigma_min=0.3, sigma_max=500.0),
        "-EDM",
    ),
    sound(
        StableAudio3Pipeline,
        stable_audio_3,
        partial(FlowMatchEulerDiscreteScheduler, num_train_timesteps=1, stochastic_sampling=True),
        duration=1.0,
    ),
]
if is_torchsde_available():
    # The scheduler of the published model.
    ENTRIES.append(
        sound(StableAudioPipeline, stable_audio, partial(CosineDPMSolverMultistepScheduler, **EDM))
    )
