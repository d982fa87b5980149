"""Pipelines of sound."""

from functools import partial
from pathlib import Path

from diffusers import (
    AceStepPipeline,
    AceStepTransformer1DModel,
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AudioLDMPipeline,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    LongCatAudioDiTPipeline,
    LongCatAudioDiTTransformer,
    LongCatAudioDiTVae,
)
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    ClapTextModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3Config,
    Qwen3Model,
    RobertaTokenizerFast,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from zoo.components import awaken, oobleck
from zoo.parts import WIDTH, Components, entry, language_settings, t5, tokenizer, unet, vae

MELS = 8
"""Frequencies of a spectrogram."""


def clap_text(tokens: RobertaTokenizerFast) -> ClapTextConfig:
    return ClapTextConfig(
        vocab_size=len(tokens),
        hidden_size=8,
        intermediate_size=8,
        num_attention_heads=1,
        num_hidden_layers=1,
        projection_dim=16,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )


def clap(tokens: RobertaTokenizerFast) -> ClapModel:
    config = ClapConfig(
        text_config=clap_text(tokens).to_dict(),
        audio_config={
            "spec_size": 8,
            "window_size": 4,
            "num_mel_bins": MELS,
            "intermediate_size": 8,
            "depths": [1, 1],
            "num_attention_heads": [1, 1],
            "num_hidden_layers": 1,
            "hidden_size": 192,
            "patch_size": 2,
            "patch_stride": 2,
            "patch_embed_input_channels": 4,
        },
        projection_dim=16,
    )
    return ClapModel(config)


def vocoder() -> SpeechT5HifiGan:
    config = SpeechT5HifiGanConfig(
        model_in_dim=MELS,
        upsample_initial_channel=16,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        normalize_before=False,
        initializer_range=0.3,  # By default the sound is of 1e-5.
    )
    return SpeechT5HifiGan(config)


def audioldm(folder: Path) -> Components:
    tokens = RobertaTokenizerFast(
        tokenizer_object=tokenizer().backend_tokenizer, model_max_length=32
    )
    network = unet(
        sample_size=16,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=16,
        class_embeddings_concat=True,
        cross_attention_dim=(16, 32),
    )
    return {
        "text_encoder": ClapTextModelWithProjection(clap_text(tokens)),
        "tokenizer": tokens,
        "unet": network,
        "vae": vae(in_channels=1, out_channels=1),
        "vocoder": vocoder(),
    }


def audioldm2(folder: Path) -> Components:
    encoder_2, letters = t5()
    # The pipeline gives the prompt to tokenizers of these two classes only.
    tokens = RobertaTokenizerFast(tokenizer_object=letters.backend_tokenizer, model_max_length=32)
    tokens_2 = T5TokenizerFast(
        tokenizer_object=letters.backend_tokenizer, model_max_length=32, extra_ids=0
    )
    language = GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=1, n_layer=1, vocab_size=8))
    language.config.max_new_tokens = 8
    network = AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=((None, 16, WIDTH),) * 2,
    )
    return {
        "text_encoder": clap(tokens),
        "tokenizer": tokens,
        "feature_extractor": ClapFeatureExtractor(),
        "text_encoder_2": encoder_2,
        "tokenizer_2": tokens_2,
        "language_model": language,
        "projection_model": AudioLDM2ProjectionModel(16, WIDTH, 16),
        "unet": network,
        "vae": vae(in_channels=1, out_channels=1),
        "vocoder": vocoder(),
    }


def longcat(folder: Path) -> Components:
    tokens = tokenizer("$A </s>")
    config = UMT5Config(
        d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2, vocab_size=len(tokens)
    )
    transformer = LongCatAudioDiTTransformer(
        dit_dim=32,
        dit_depth=1,
        dit_heads=2,
        dit_text_dim=WIDTH,
        latent_dim=8,
        text_conv=False,
    )
    autoencoder = LongCatAudioDiTVae(
        channels=16,
        c_mults=[1, 2],
        strides=[2],
        latent_dim=8,
        encoder_latent_dim=16,
        downsampling_ratio=2,
        sample_rate=24000,
    )
    return {
        "text_encoder": UMT5EncoderModel(config),
        "tokenizer": tokens,
        "transformer": awaken(transformer),
        "vae": autoencoder,
    }


def ace_step(folder: Path) -> Components:
    tokens = tokenizer()
    layers = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 16,
    }
    transformer = AceStepTransformer1DModel(
        **layers, num_hidden_layers=2, in_channels=24, audio_acoustic_hidden_dim=8
    )
    condition_encoder = AceStepConditionEncoder(
        **layers,
        text_hidden_dim=WIDTH,
        timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
    )
    return {
        "text_encoder": Qwen3Model(Qwen3Config(**language_settings(tokens))),
        "tokenizer": tokens,
        "transformer": transformer,
        "condition_encoder": condition_encoder,
        "vae": oobleck(8),
    }


AUDIOLDM_DDIM = partial(
    DDIMScheduler,
    beta_start=0.0015,
    beta_end=0.0195,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)
sound = partial(entry, medium="audio")
ENTRIES = [
    sound(AudioLDMPipeline, audioldm, AUDIOLDM_DDIM, output_type="np"),
    sound(AudioLDM2Pipeline, audioldm2, AUDIOLDM_DDIM, output_type="np"),
    sound(
        LongCatAudioDiTPipeline,
        longcat,
        partial(FlowMatchEulerDiscreteScheduler, invert_sigmas=True),
        audio_duration_s=0.01,
    ),
    sound(
        AceStepPipeline,
        ace_step,
        partial(FlowMatchEulerDiscreteScheduler, num_train_timesteps=1),
        lyrics="la la",
        audio_duration=8.0,
        max_text_length=512,  # Instructions precede the prompt, and a letter is a token.
    ),
]
SKIPPED = {
    "MusicLDMPipeline": "deprecated, and fails with transformers 5, whose CLAP returns no tensor",
    "DanceDiffusionPipeline": "deprecated",
    "SpectrogramDiffusionPipeline": "deprecated, and needs note_seq",
}
"""Pipelines without an entry, and why."""
