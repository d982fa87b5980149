"""Train the UNet and the text encoder of a pipeline, jointly, on the latents of a trained VAE.

From the root of the repository:

    python assets/scripts/train_pipeline.py --source digits --data ../shared/data/mnist
"""

import copy
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jsonargparse import auto_cli
from sources import Source, SourceName, open_source
from torch import Tensor, nn
from training import Run
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from vocabulary import MAX_LENGTH, build_tokenizer

PROMPT_DROPOUT = 0.1
"""Share of the training prompts replaced by the empty one, for classifier-free guidance."""

SNR_CAP = 5.0
"""Signal-to-noise ratio above which a step weighs less (min-SNR weighting)."""


def build_pipeline(vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """Return a pipeline with the given parts and an untrained UNet and text encoder."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(64, 128),
        # Attention only on the 4x4 grid: it is cheap there, and colours need no finer one.
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=2,
        norm_num_groups=16,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


class LatentCache:
    """Latents of images drawn once, with the tokens of their captions.

    Args:
        pipeline: The pipeline whose VAE and tokenizer to use.
        source: The images.
        count: How many images to encode.
        seed: Seed of the draw.
    """

    @torch.no_grad()
    def __init__(
        self, pipeline: StableDiffusionPipeline, source: Source, count: int, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        means, spreads, tokens = [], [], []
        for _ in range(0, count, 256):
            pixels, captions = source.batch(256, generator)
            latent = pipeline.vae.encode(pixels * 2 - 1).latent_dist
            means.append(latent.mean)
            spreads.append(latent.std)
            tokens.append(tokenize(pipeline.tokenizer, captions))
        scale = pipeline.vae.config.scaling_factor
        self._means, self._spreads = torch.cat(means) * scale, torch.cat(spreads) * scale
        self._tokens = torch.cat(tokens)
        self._empty = tokenize(pipeline.tokenizer, [""])

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw latents (count, 4, 8, 8) and tokens (count, L), a tenth of them empty."""
        rows = torch.randint(len(self._means), (count,), generator=generator)
        noise = torch.randn(self._means[rows].shape, generator=generator)
        dropped = torch.rand(count, 1, generator=generator) < PROMPT_DROPOUT
        tokens = torch.where(dropped, self._empty, self._tokens[rows])
        return self._means[rows] + self._spreads[rows] * noise, tokens


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Return token ids padded to the length of the model, of shape (B, L)."""
    encoded = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids


def denoising_loss(
    pipeline: StableDiffusionPipeline, latents: Tensor, tokens: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the min-SNR weighted error of the predicted noise, a scalar.

    Args:
        pipeline: The pipeline in training.
        latents: Scaled latents, of shape (B, 4, 8, 8).
        tokens: Token ids, of shape (B, L).
        generator: Draws the times and the noise.
    """
    scheduler = pipeline.scheduler
    times = torch.randint(
        scheduler.config.num_train_timesteps, (len(latents),), generator=generator
    )
    noise = torch.randn(latents.shape, generator=generator)
    noisy = scheduler.add_noise(latents, noise, times)
    context = pipeline.text_encoder(tokens).last_hidden_state
    error: Tensor = (pipeline.unet(noisy, times, context).sample - noise).square().mean((1, 2, 3))
    kept: Tensor = scheduler.alphas_cumprod[times]
    ratio = kept / (1 - kept)
    return (error * ratio.clamp(max=SNR_CAP) / ratio).mean()


def save(pipeline: StableDiffusionPipeline, output: Path) -> None:
    """Write the pipeline aside first, so that readers always find a whole folder.

    The UNet and the VAE are stored in half precision. The text encoder is small, and newer
    versions of transformers would load it in the precision of its file.
    """
    aside, old = output.with_name(output.name + ".aside"), output.with_name(output.name + ".old")
    pipeline.save_pretrained(aside)
    for part in ("unet", "vae"):
        copy.deepcopy(getattr(pipeline, part)).half().save_pretrained(aside / part)
    if output.exists():
        output.rename(old)
    aside.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def main(
    source: SourceName = "digits",
    data: Path = Path("../shared/data/mnist"),
    work: Path = Path("outputs/assets/digits"),
    output: Path = Path("assets/digits"),
    steps: int = 10000,
    stop: int | None = None,
    batch: int = 64,
    cache: int = 60000,
    seed: int = 0,
) -> None:
    """Train a pipeline on top of ``work/vae`` and write it to ``output``.

    Args:
        source: Which images to train on.
        data: Folder of their data.
        work: Folder with the trained VAE, and of the checkpoint.
        output: Folder of the pipeline, replaced at every checkpoint.
        steps: Number of optimizer steps that the learning rate is planned for.
        stop: Step to end at, for a pipeline that leaves something to improve; else the last.
        batch: Images per step.
        cache: Number of encoded images to draw batches from.
        seed: Seed of the weights, the images and the batches.
    """
    torch.manual_seed(seed)
    images = open_source(source, data)
    vae = AutoencoderKL.from_pretrained(work / "vae")
    # The saved configuration would otherwise name a folder of this machine.
    vae.register_to_config(_name_or_path="vae")
    pipeline = build_pipeline(vae, build_tokenizer(images.vocabulary()))
    latents = LatentCache(pipeline, images, cache, seed)

    def loss_of(generator: torch.Generator) -> Tensor:
        return denoising_loss(pipeline, *latents.batch(batch, generator), generator)

    trained = nn.ModuleList([pipeline.unet, pipeline.text_encoder])
    run = Run(trained, work / "pipeline.pt", steps, 1e-3, seed)
    seconds = run.train(loss_of, lambda: save(pipeline, output), stop=stop)
    print(f"trained in {seconds:.0f} s")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
