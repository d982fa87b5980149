"""A folder with a tiny random CLAP model, its feature extractor and its tokenizer."""

from pathlib import Path
from typing import Any

import torch

WORDS = ["a", "dog", "barks", "rain", "falls", "on", "the", "roof", "someone", "says", "seven"]


def save_tiny_clap(
    folder: Path, fused: bool = False, rate: int = 8000, seconds: int = 1, **extractor: Any
) -> Path:
    """Write a model for sounds of `seconds` with 64 mel bands; transformers reads it back."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        PreTrainedTokenizerFast,
    )

    audio = {
        "num_mel_bins": 16,
        "spec_size": 64,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "window_size": 4,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "hidden_size": 16,
        "enable_fusion": fused,
        "fusion_type": "aff_2d" if fused else None,
    }
    text = {
        "vocab_size": 100,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 12,
    }
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ClapModel(config).eval()
        with torch.no_grad():
            # What comes at random lies too near zero to tell one sound from another.
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and "embeddings" not in name:
                    parameter.normal_(0, 2 * parameter[0].numel() ** -0.5)
            norm = model.audio_model.audio_encoder.batch_norm
            norm.running_mean.fill_(-30.0)
            norm.running_var.fill_(400.0)
    model.save_pretrained(folder)
    settings = {"truncation": "fusion" if fused else "rand_trunc", "frequency_min": 50}
    settings |= {"hop_length": rate // 200, "fft_window_size": 256, "frequency_max": 3800}
    ClapFeatureExtractor(
        feature_size=16, sampling_rate=rate, max_length_s=seconds, **(settings | extractor)
    ).save_pretrained(folder)
    vocabulary = {w: i for i, w in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder
