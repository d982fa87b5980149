"""Train a masked discrete diffusion model that writes verses in the manner of Shakespeare.

python assets/scripts/train_verses.py --data ../shared/data/rewards/text
"""

import copy
from pathlib import Path

import torch
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from jsonargparse import auto_cli
from torch import Tensor
from training import Run
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast
from verses import build_tokenizer, draw_masks, masked_nats, read_plays, tokenize

LENGTHS = (32, 64, 96)
"""Tokens per window, the opening one included; a batch has one of them."""

ROPE_BASE = 1000.0

NEVER = -1e4
"""Logit of the marks, which no text contains; the largest power of ten that float16 holds."""


def build_model(tokenizer: PreTrainedTokenizerFast) -> ModernBertForMaskedLM:
    """Return an untrained bidirectional transformer that cannot predict a mark.

    Args:
        tokenizer: Its vocabulary.
    """
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        layer_types=["full_attention"] * 4,
        # With the default base, made for thousands of tokens, and the default spread of the
        # weights, training did not get past the frequencies of the tokens in 250 steps.
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": ROPE_BASE}},
        initializer_range=0.06,
        # What transformers before version 5 read instead of the layer types and the base.
        global_attn_every_n_layers=1,
        max_position_embeddings=max(LENGTHS),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        cls_token_id=tokenizer.bos_token_id,
        sep_token_id=tokenizer.eos_token_id,
    )
    config.global_rope_theta = ROPE_BASE
    model = ModernBertForMaskedLM(config)
    with torch.no_grad():
        model.decoder.bias[tokenizer.all_special_ids] = NEVER
    return model


def save(pipeline: LLaDA2Pipeline, output: Path) -> None:
    """Write the pipeline, its weights in half precision, to be loaded in single precision.

    Diffusers does not write the tokenizer of this class, but names it, so that the folder cannot
    be loaded without handing the tokenizer over.
    """
    pipeline.save_pretrained(output)
    copy.deepcopy(pipeline.model).half().save_pretrained(output / "model")
    # Transformers loads in the precision that the configuration names.
    pipeline.model.config.save_pretrained(output / "model")
    pipeline.tokenizer.save_pretrained(output / "tokenizer")


def main(
    data: Path = Path("../shared/data/rewards/text"),
    work: Path = Path("outputs/assets/verses"),
    output: Path = Path("assets/verses"),
    steps: int = 3000,
    batch: int = 32,
    tokens: int = 512,
    seed: int = 0,
) -> None:
    """Train a pipeline and write it to ``output``.

    Args:
        data: Folder with ``tinyshakespeare.txt``.
        work: Folder of the checkpoint.
        output: Folder of the pipeline, replaced at every checkpoint.
        steps: Number of optimizer steps.
        batch: Windows per step.
        tokens: Size of the vocabulary.
        seed: Seed of the weights and the batches.
    """
    torch.manual_seed(seed)
    text = read_plays(data, "train")
    tokenizer = build_tokenizer(text, tokens)
    plays = tokenize(text, tokenizer)
    model = build_model(tokenizer)
    # Halves the time of a step on a CPU, where the fused kernel is slow in bfloat16.
    model.set_attn_implementation("eager")
    scheduler = BlockRefinementScheduler()
    pipeline = LLaDA2Pipeline(model=model, scheduler=scheduler, tokenizer=tokenizer)

    def loss_of(generator: torch.Generator) -> Tensor:
        length = LENGTHS[int(torch.randint(len(LENGTHS), (), generator=generator))]
        windows = plays.batch(batch, length, generator)
        # Half of the windows have a beginning of any length to continue, as prompts will be.
        prefixes = 1 + torch.randint(length - 1, (batch,), generator=generator)
        prefixes[: batch // 2] = 1
        masks = draw_masks(prefixes, length, generator)
        with torch.autocast("cpu", torch.bfloat16):
            return masked_nats(model, windows, masks, tokenizer.mask_token_id).mean()

    run = Run(model, work / "verses.pt", steps, 1e-3, seed)
    seconds = run.train(loss_of, lambda: save(pipeline, output), every=500)
    print(f"trained in {seconds:.0f} s")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
