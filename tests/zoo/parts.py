"""Components and entries from which the tiny image pipelines are put together."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    SchedulerMixin,
    UNet2DConditionModel,
    VQModel,
)
from PIL import Image
from tiny import tokenizer as clip_tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from zoo.entry import Entry

Components = dict[str, object]

WIDTH = 32
"""Of all text embeddings."""
SIZE = {"height": 16, "width": 16}
"""Of most images."""
PICTURE = Image.new("RGB", (16, 16), "red")
MASK = Image.new("L", (16, 16), "white")
ENTRIES: list[Entry] = []
"""None: zoo.check asks every module."""


def entry(
    pipeline: type[DiffusionPipeline],
    components: Callable[[Path], Components],
    scheduler: Callable[[], SchedulerMixin],
    variant: str = "",
    medium: str = "images",
    **call: object,
) -> Entry:
    """A pipeline of random weights, the same ones every time, called for one prompt."""

    def build(folder: Path) -> DiffusionPipeline:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipe = pipeline(**components(folder), scheduler=scheduler())
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        return pipe

    usual = {"prompt": "a red cat", "num_inference_steps": 4, "output_type": "pt"}
    return Entry(pipeline.__name__ + variant, build, usual | call, medium)


def without_prompt(made: Entry) -> Entry:
    """The entry of a pipeline that takes no prompt."""
    call = {name: value for name, value in made.call.items() if name != "prompt"}
    return Entry(made.name, made.build, call, made.medium)


def adjusted(made: Entry, adjust: Callable[[DiffusionPipeline], None]) -> Entry:
    """The entry of a pipeline with a size that no argument sets."""

    def build(folder: Path) -> DiffusionPipeline:
        pipe = made.build(folder)
        adjust(pipe)
        return pipe

    return Entry(made.name, build, made.call, made.medium)


def tokenizer(template: str = "<s> $A") -> PreTrainedTokenizerFast:
    """One token per character, in a template with the special tokens."""
    special = ["<pad>", "</s>", "<unk>", "<s>"]
    vocabulary = [*special, *map(chr, range(32, 127))]
    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    words.post_processor = processors.TemplateProcessing(
        single=template,
        special_tokens=[("<s>", special.index("<s>")), ("</s>", special.index("</s>"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>",
        model_max_length=64,
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )


def clip(
    folder: Path, model: type[PreTrainedModel] = CLIPTextModel, length: int = 16
) -> tuple[PreTrainedModel, object]:
    """Text encoder and tokenizer."""
    tokens = clip_tokenizer(folder)
    config = CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=len(tokens),
        max_position_embeddings=length,
        projection_dim=WIDTH,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    return model(config), tokens


def clip_vision() -> CLIPVisionModelWithProjection:
    """Image encoder for pictures of 16 pixels."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_attention_heads=2,
            num_hidden_layers=1,
            image_size=16,
            patch_size=8,
            projection_dim=WIDTH,
        )
    )


def language_settings(tokens: PreTrainedTokenizerFast) -> dict[str, int]:
    """Size of a language model, in the names that nearly all configurations share."""
    return {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": WIDTH // 2,
        "vocab_size": len(tokens),
        "pad_token_id": tokens.pad_token_id,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
    }


def t5(width: int = WIDTH) -> tuple[T5EncoderModel, PreTrainedTokenizerFast]:
    """Text encoder and tokenizer."""
    tokens = tokenizer("$A </s>")
    config = T5Config(
        d_model=width,
        d_kv=WIDTH // 2,
        d_ff=WIDTH,
        num_layers=1,
        num_heads=2,
        vocab_size=len(tokens),
    )
    return T5EncoderModel(config), tokens


def vae(blocks: int = 2, latent_channels: int = 4, **config: object) -> AutoencoderKL:
    """A variational autoencoder that shrinks 2 ** (blocks - 1) times."""
    return AutoencoderKL(
        block_out_channels=(8,) * blocks,
        norm_num_groups=4,
        latent_channels=latent_channels,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        **config,
    )


def movq() -> VQModel:
    """The autoencoder of Kandinsky, shrinking twice."""
    return VQModel(
        block_out_channels=(32, 32),
        norm_num_groups=8,
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=8,
        norm_type="spatial",
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    )


def unet(**config: object) -> UNet2DConditionModel:
    """A text-conditional network for latents of 8 pixels."""
    usual = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**usual | config)


def language_model(
    model: type[PreTrainedModel], configuration: type[PreTrainedConfig], **config: object
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Text encoder and tokenizer."""
    tokens = tokenizer()
    return model(configuration(**language_settings(tokens) | config)), tokens
