"""Small language models with random weights, in folders as published ones have them."""

from pathlib import Path
from typing import Any

import torch

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "with", "is", "not", "good", "bad"]


def tokenizer(folder: Path, specials: list[str], **names: str) -> Any:
    """One that splits at blanks, saved in a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*specials, "[UNK]", *WORDS])}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="[UNK]", **names)
    made.save_pretrained(folder)
    return made


def spread(model: torch.nn.Module) -> None:
    """Weights so large that the outputs differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)


def causal_model(folder: Path) -> Path:
    """A GPT-2 of 24 places."""
    from transformers import GPT2Config, GPT2LMHeadModel

    words = tokenizer(folder, ["<|endoftext|>"], bos_token="<|endoftext|>")
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(words), n_positions=24, n_embd=16, n_layer=2, n_head=2, bos_token_id=0
        )
    )
    spread(model)
    model.save_pretrained(folder)
    return folder


def classifier(folder: Path) -> Path:
    """A RoBERTa of 12 places with two labels."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    words = tokenizer(folder, ["<s>", "<pad>"], pad_token="<pad>", cls_token="<s>")
    model = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=14,
            pad_token_id=1,
            id2label={0: "bad", 1: "good"},
            label2id={"bad": 0, "good": 1},
        )
    )
    spread(model)
    model.save_pretrained(folder)
    return folder
