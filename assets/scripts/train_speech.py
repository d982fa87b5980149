"""Train the network of the speech pipeline, on the latents of a trained autoencoder.

From the root of the repository, after train_speech_vae.py and train_speech_vocoder.py:

    python assets/scripts/train_speech.py
"""

import copy
import shutil
from pathlib import Path

import torch
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2UNet2DConditionModel,
    AutoencoderKL,
    DDIMScheduler,
)
from jsonargparse import auto_cli
from speech import RATE, Recordings, caption_row, captions, load_recordings
from speech_text import WIDTH, text_parts
from torch import Tensor
from train_speech_vae import HOP, MELS
from training import Run
from transformers import SpeechT5HifiGan

from diffreward.pipelines.audioldm2 import log_mel

PROMPT_DROPOUT = 0.1
"""Share of the training prompts replaced by the empty one, for classifier-free guidance."""

SNR_CAP = 5.0
"""Signal-to-noise ratio above which a step weighs less."""

COPIES = 8
"""How often each recording is encoded, each time starting elsewhere."""


def build_pipeline(
    vae: AutoencoderKL, vocoder: SpeechT5HifiGan, parts: dict[str, object]
) -> AudioLDM2Pipeline:
    """Return a pipeline with the given parts and an untrained network."""
    unet = AudioLDM2UNet2DConditionModel(
        sample_size=12,
        layers_per_block=1,
        block_out_channels=(48, 72, 96),
        # No attention on the finest grid, 12x16, where it would cost most.
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=12,
    )
    scheduler = DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        # Where noise is loud, its error says little of what is said, and the velocity's all.
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return AudioLDM2Pipeline(vae=vae, unet=unet, scheduler=scheduler, vocoder=vocoder, **parts)


@torch.no_grad()
def embed(pipeline: AudioLDM2Pipeline, prompts: list[str]) -> Tensor:
    """Return what the network attends to, (N, 2, WIDTH), each prompt embedded alone."""
    rows = [pipeline.encode_prompt([prompt], "cpu", 1, False)[2] for prompt in prompts]
    return torch.cat(rows)


class LatentCache:
    """Latents of all recordings, several times each, and who says what.

    Args:
        pipeline: The pipeline whose autoencoder to use.
        recordings: What to encode.
        seed: Seed of the starts.
    """

    @torch.no_grad()
    def __init__(self, pipeline: AudioLDM2Pipeline, recordings: Recordings, seed: int) -> None:
        rows = torch.arange(len(recordings)).repeat(COPIES)
        generator = torch.Generator().manual_seed(seed)
        means, spreads = [], []
        for part in rows.split(100):
            mels = log_mel(recordings.clips(part, generator), RATE, HOP, MELS)[:, None]
            with torch.autocast("cpu", torch.bfloat16):
                law = pipeline.vae.encode(mels).latent_dist
            means.append(law.mean.float())
            spreads.append(law.std.float())
        scale = pipeline.vae.config.scaling_factor
        self._means, self._spreads = torch.cat(means) * scale, torch.cat(spreads) * scale
        self._digits, self._speakers = recordings.digits[rows], recordings.speakers[rows]

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw latents (count, 4, 12, 16) and rows of `captions` (count,), some of them -1."""
        rows = torch.randint(len(self._means), (count,), generator=generator)
        noise = torch.randn(self._means[rows].shape, generator=generator)
        named = torch.rand(count, generator=generator) < 0.5
        texts = caption_row(self._digits[rows], self._speakers[rows], named)
        dropped = torch.rand(count, generator=generator) < PROMPT_DROPOUT
        return self._means[rows] + self._spreads[rows] * noise, texts.masked_fill(dropped, -1)


def denoising_loss(
    pipeline: AudioLDM2Pipeline, latents: Tensor, context: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the error of the predicted velocity, less of it where noise is low, a scalar.

    Args:
        pipeline: The pipeline in training.
        latents: Scaled latents, of shape (B, 4, 12, 16).
        context: Embeddings of the prompts, of shape (B, 2, WIDTH).
        generator: Draws the times and the noise.
    """
    scheduler = pipeline.scheduler
    times = torch.randint(
        scheduler.config.num_train_timesteps, (len(latents),), generator=generator
    )
    noise = torch.randn(latents.shape, generator=generator)
    noisy = scheduler.add_noise(latents, noise, times).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found = pipeline.unet(noisy, times, context).sample
    wanted = scheduler.get_velocity(latents, noise, times)
    error: Tensor = (found.float() - wanted).square().mean((1, 2, 3))
    kept: Tensor = scheduler.alphas_cumprod[times]
    ratio = kept / (1 - kept)
    return (error * ((SNR_CAP + 1) / (ratio + 1)).clamp(max=1)).mean()


def save(pipeline: AudioLDM2Pipeline, output: Path) -> None:
    """Write the pipeline aside first, so that readers always find a whole folder.

    The large parts are stored in half precision; newer versions of transformers would load the
    others in the precision of their files.
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
    data: Path = Path("../shared/data/fsdd/fsdd.parquet"),
    work: Path = Path("outputs/assets/speech"),
    output: Path = Path("assets/speech"),
    steps: int = 10000,
    stop: int | None = None,
    batch: int = 32,
    seed: int = 0,
) -> None:
    """Train a pipeline on top of ``work/vae`` and ``work/vocoder`` and write it to ``output``.

    Args:
        data: The data set.
        work: Folder with the trained parts, and of the checkpoint.
        output: Folder of the pipeline, replaced at every checkpoint.
        steps: Number of optimizer steps that the learning rate is planned for.
        stop: Step to end at, for a pipeline that leaves something to improve; else the last.
        batch: Clips per step.
        seed: Seed of the weights, the starts and the batches.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL.from_pretrained(work / "vae")
    # The saved configuration would otherwise name a folder of this machine.
    vae.register_to_config(_name_or_path="vae")
    vocoder = SpeechT5HifiGan.from_pretrained(work / "vocoder")
    pipeline = build_pipeline(vae, vocoder, text_parts(seed))
    pipeline.unet.to(memory_format=torch.channels_last)
    latents = LatentCache(pipeline, load_recordings(data, "pipeline"), seed)
    context = embed(pipeline, [*captions(), ""])

    def loss_of(generator: torch.Generator) -> Tensor:
        clean, rows = latents.batch(batch, generator)
        return denoising_loss(pipeline, clean, context[rows], generator)

    run = Run(pipeline.unet, work / "pipeline.pt", steps, 1e-3, seed)
    seconds = run.train(loss_of, lambda: save(pipeline, output), every=500, stop=stop)
    print(f"trained in {seconds:.0f} s")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
