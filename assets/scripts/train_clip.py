"""Train a small CLIP model on coloured digits, in the format of open_clip.

python assets/scripts/train_clip.py --data ../shared/data/mnist
"""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from degrade import degrade
from digits import Renderer, caption, load_digits, seen_combinations
from jsonargparse import auto_cli
from safetensors.torch import save_file
from sources import DigitSource
from torch import Tensor
from torch.nn import functional as F
from training import Run
from vocabulary import MAX_LENGTH, build_tokenizer

IMAGE_SIZE = 64
"""Side of the input: open_clip's residual network divides it by 32."""

CANDIDATES = 160
"""Captions that compete in one step; about eight of them are one word off any given one."""


def model_config(tokens: int) -> dict[str, Any]:
    """Return the architecture, for a vocabulary of ``tokens`` tokens."""
    vision = {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    text = {
        "context_length": MAX_LENGTH,
        "vocab_size": tokens,
        "width": 64,
        "heads": 4,
        "layers": 2,
        # Any name makes open_clip load the tokenizer that lies in the folder of the model.
        "hf_tokenizer_name": "digits-clip",
    }
    return {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text}


def preprocess(pixels: Tensor) -> Tensor:
    """Map images in [0, 1], of shape (B, 3, H, W), to the input of the image tower."""
    enlarged = F.interpolate(pixels, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
    return (enlarged - 0.5) / 0.5


def contrastive_loss(images: Tensor, texts: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    """Return the mean of the image-to-text and the text-to-image loss, a scalar.

    Every image competes for its caption with all C captions, every caption for its image with
    the images that have another caption.

    Args:
        images: Unit vectors, of shape (B, D).
        texts: Unit vectors of the captions, of shape (C, D).
        rows: Which caption describes each image, of shape (B,).
        scale: Inverse temperature, a scalar.
    """
    logits = scale * images @ texts.T
    pairs = logits[:, rows].T
    twins = (rows[:, None] == rows[None, :]) & ~torch.eye(len(rows), dtype=torch.bool)
    pairs = pairs.masked_fill(twins, float("-inf"))
    return (F.cross_entropy(logits, rows) + F.cross_entropy(pairs, torch.arange(len(rows)))) / 2


def main(
    data: Path = Path("../shared/data/mnist"),
    work: Path = Path("outputs/assets/clip"),
    output: Path = Path("assets/digits-clip"),
    steps: int = 3000,
    batch: int = 64,
    seed: int = 0,
) -> None:
    """Train a CLIP model and write it to ``output``.

    Args:
        data: Folder of the MNIST test set.
        work: Folder of the checkpoint.
        output: Folder of the model, replaced at every checkpoint.
        steps: Number of optimizer steps.
        batch: Images per step.
        seed: Seed of the weights and the batches.
    """
    torch.manual_seed(seed)
    seen = seen_combinations()
    renderer = Renderer(load_digits(data, "pipeline"), seen)
    tokenizer = build_tokenizer(DigitSource(data).vocabulary())
    config = model_config(len(tokenizer))
    model = open_clip.CLIP(**config)
    captions = [caption(combination) for combination in seen]
    tokens = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    targets = torch.tensor(seen)

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.randperm(len(seen), generator=generator)[:CANDIDATES]
        rows = torch.randint(len(chosen), (batch,), generator=generator)
        drawn = renderer.render(targets[chosen[rows]], generator)
        pixels = degrade(drawn.pixels, generator)
        images = model.encode_image(preprocess(pixels), normalize=True)
        texts = model.encode_text(tokens[chosen], normalize=True)
        return contrastive_loss(images, texts, rows, model.logit_scale.exp().clamp(max=100))

    def export() -> None:
        output.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(output)
        picture = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear",
                   "resize_mode": "squash"}  # fmt: skip
        described = {"model_cfg": config, "preprocess_cfg": picture}
        (output / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")
        aside = output / "open_clip_model.aside"
        save_file({name: value.contiguous() for name, value in model.half().state_dict().items()},
                  aside)  # fmt: skip
        model.float()
        aside.replace(output / "open_clip_model.safetensors")

    seconds = Run(model, work / "clip.pt", steps, 1e-3, seed, decay=0.995).train(
        loss_of, export, every=500
    )
    print(f"trained in {seconds:.0f} s")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
