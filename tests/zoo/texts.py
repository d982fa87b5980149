"""Tiny pipelines that write texts."""

from pathlib import Path
from typing import Any

from diffusers import (
    BlockRefinementScheduler,
    DiffusionGemmaPipeline,
    EntropyBoundScheduler,
    LLaDA2Pipeline,
)
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    Gemma4VisionConfig,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
)

from zoo.parts import WIDTH, Components, entry, language_settings, tokenizer


class Processor:
    """In place of Gemma's, which prepares pictures too."""

    def __init__(self, tokens: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokens

    def apply_chat_template(self, messages: Any, **how: Any) -> Any:
        return self.tokenizer.apply_chat_template(messages, **how)

    def batch_decode(self, sequences: Any, **how: Any) -> list[str]:
        return self.tokenizer.batch_decode(sequences, **how)


def llada2(folder: Path) -> Components:
    tokens = tokenizer("$A")
    tokens.mask_token = "<s>"
    config = ModernBertConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(tokens),
        initializer_range=0.5,
        pad_token_id=tokens.pad_token_id,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        cls_token_id=tokens.bos_token_id,
        sep_token_id=tokens.eos_token_id,
    )
    return {"model": ModernBertForMaskedLM(config), "tokenizer": tokens}


def diffusion_gemma(folder: Path) -> Components:
    tokens = tokenizer("$A")
    text = {
        **language_settings(tokens),
        "global_head_dim": WIDTH // 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_experts": 2,
        "top_k_experts": 1,
        "moe_intermediate_size": WIDTH,
        "initializer_range": 0.5,
    }
    vision = Gemma4VisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=WIDTH // 2,
    )
    config = DiffusionGemmaConfig(
        text_config=text, vision_config=vision, canvas_length=4, initializer_range=0.5
    )
    return {"model": DiffusionGemmaForBlockDiffusion(config), "processor": Processor(tokens)}


def cold() -> EntropyBoundScheduler:
    """Accepts all tokens, each the likeliest: all chance is in the canvas with which it starts."""
    return EntropyBoundScheduler(entropy_bound=1e9, t_max=1e-6, t_min=1e-6)


ENTRIES = [
    # Greedy, so that the particles of the one prompt are alike: tests/steering/test_tokens.py has
    # those that are not.
    entry(
        LLaDA2Pipeline,
        llada2,
        BlockRefinementScheduler,
        medium="text",
        gen_length=8,
        block_length=4,
        threshold=2.0,
        use_chat_template=False,
        output_type="text",
    ),
    entry(
        DiffusionGemmaPipeline,
        diffusion_gemma,
        cold,
        medium="text",
        gen_length=8,
        confidence_threshold=None,
        output_type="text",
    ),
]
