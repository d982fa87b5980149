"""The words of the speech models: their tokenizer, and the text parts of the pipeline."""

import json

import torch
from diffusers import AudioLDM2ProjectionModel
from speech import DIGITS, RATE, SPEAKERS, captions
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

START, PAD, END, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"
MAX_LENGTH = 8
"""Tokens per prompt, the marks included; the longest has five."""

WIDTH = 64
"""Of the embeddings that the network sees."""


def build_tokenizer() -> RobertaTokenizerFast:
    """Return a byte-level tokenizer to which each word of the captions is one token."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # Speakers before digits too, so that every word is learned with and without a space.
    sentences = [*captions(), *(f"{name} {digit}" for name in SPEAKERS for digit in DIGITS)]
    words.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            special_tokens=[START, PAD, END, UNKNOWN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    learned = json.loads(words.to_str())["model"]
    return RobertaTokenizerFast(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        mask_token=None,
        model_max_length=MAX_LENGTH,
    )


def build_t5_tokenizer() -> T5TokenizerFast:
    """Return a tokenizer of T5's kind to which each word of the captions is one token."""
    pieces = [PAD, END, UNKNOWN, ",", *(f"\u2581{word}" for word in (*DIGITS, *SPEAKERS))]
    return T5TokenizerFast(
        vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=MAX_LENGTH
    )


def clap_text_config(tokenizer: RobertaTokenizerFast, width: int) -> dict[str, int]:
    """Return the configuration of the text tower of a CLAP model."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        # Positions begin after that of the padding.
        "max_position_embeddings": MAX_LENGTH + 2,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def text_parts(seed: int) -> dict[str, object]:
    """Return the text parts of the pipeline, untrained and meant to stay so.

    Seventy prompts need no learned language: random weights give each its own embedding, and the
    network learns what they mean. The spread of the weights is such that every word tells.
    Positions are not embedded, so that padding between two prompts of a batch changes nothing.

    Args:
        seed: Seed of the weights.
    """
    tokenizer, tokenizer_2 = build_tokenizer(), build_t5_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tiny = {"spec_size": 8, "window_size": 4, "num_mel_bins": 8, "depths": [1, 1],
                "num_attention_heads": [1, 1], "num_hidden_layers": 1, "patch_size": 2,
                "patch_stride": 2, "patch_embeds_hidden_size": 4, "hidden_size": 8}  # fmt: skip
        words = clap_text_config(tokenizer, 16)
        clap = ClapModel(ClapConfig(text_config=words, audio_config=tiny, projection_dim=16))
        text = T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer_2),
                d_model=WIDTH,
                d_kv=16,
                d_ff=2 * WIDTH,
                num_layers=1,
                num_heads=4,
                pad_token_id=tokenizer_2.pad_token_id,
            )
        )
        language = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=1,
                n_embd=WIDTH,
                n_layer=1,
                n_head=4,
                n_positions=64,
                initializer_range=WIDTH**-0.5,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
        language.config.max_new_tokens = 2
        torch.nn.init.zeros_(language.transformer.wpe.weight)
        parts = {
            "text_encoder": clap,
            "tokenizer": tokenizer,
            "feature_extractor": ClapFeatureExtractor(sampling_rate=RATE),
            "text_encoder_2": text,
            "tokenizer_2": tokenizer_2,
            "language_model": language,
            "projection_model": AudioLDM2ProjectionModel(16, WIDTH, WIDTH),
        }
    for part in (clap, text, language):
        # With their dropouts a prompt would not be embedded as it will be later.
        part.eval()
    return parts
