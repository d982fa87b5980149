"""Train the autoencoder of spectrograms that the speech pipeline works on.

python assets/scripts/train_speech_vae.py
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from jsonargparse import auto_cli
from speech import RATE, load_recordings
from torch import Tensor
from training import Run

from diffreward.pipelines.audioldm2 import log_mel

HOP = 256
MELS = 64
MEAN, SPREAD = -7.5, 3.5
"""Of log amplitudes: what the first layer removes and the last adds."""
KL_WEIGHT = 1e-3
"""Weight of the mean divergence per latent element; keeps latents smooth, not yet blurry."""


def build_vae(width: int) -> AutoencoderKL:
    """Return an untrained autoencoder from (B, 1, 48, 64) to latents of shape (B, 4, 12, 16)."""
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(width, 2 * width, 4 * width),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        vae.encoder.conv_in.weight /= SPREAD
        vae.encoder.conv_in.bias -= MEAN * vae.encoder.conv_in.weight.sum((1, 2, 3))
        vae.decoder.conv_out.weight *= SPREAD
        vae.decoder.conv_out.bias += MEAN
    return vae


def main(
    data: Path = Path("../shared/data/fsdd/fsdd.parquet"),
    work: Path = Path("outputs/assets/speech"),
    steps: int = 1200,
    batch: int = 32,
    width: int = 16,
    seed: int = 0,
) -> None:
    """Train an autoencoder and write it to ``work/vae``.

    Args:
        data: The data set.
        work: Folder of the checkpoint and the result.
        steps: Number of optimizer steps.
        batch: Clips per step.
        width: Channels of the first block.
        seed: Seed of the weights and the batches.
    """
    torch.manual_seed(seed)
    recordings = load_recordings(data, "pipeline")
    vae = build_vae(width).to(memory_format=torch.channels_last)

    def draw(count: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(recordings), (count,), generator=generator)
        return log_mel(recordings.clips(rows, generator), RATE, HOP, MELS)[:, None]

    def loss_of(generator: torch.Generator) -> Tensor:
        mels = draw(batch, generator)
        with torch.autocast("cpu", torch.bfloat16):
            latent = vae.encode(mels).latent_dist
            noise = torch.randn(latent.mean.shape, generator=generator)
            restored = vae.decode(latent.mean + latent.std * noise).sample
        error: Tensor = (restored.float() - mels) / SPREAD
        divergence = 0.5 * (latent.mean.square() + latent.var - 1 - latent.logvar).float().mean()
        loss: Tensor = error.abs().mean() + error.square().mean() + KL_WEIGHT * divergence
        return loss

    @torch.no_grad()
    def export() -> None:
        mels = draw(256, torch.Generator().manual_seed(seed))
        scale = 1 / vae.encode(mels).latent_dist.mean.std().item()
        vae.register_to_config(scaling_factor=round(scale, 4))
        vae.save_pretrained(work / "vae")
        error = (vae(mels).sample - mels).square().mean().sqrt().item()
        print(f"scaling factor {scale:.4f}, error {error:.4f} nepers RMS", flush=True)

    seconds = Run(vae, work / "vae.pt", steps, 2e-3, seed).train(loss_of, export, every=200)
    print(f"trained in {seconds:.0f} s")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
