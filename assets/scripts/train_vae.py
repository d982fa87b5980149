"""Train the autoencoder of a pipeline.

python assets/scripts/train_vae.py --source digits --data ../shared/data/mnist
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from jsonargparse import auto_cli
from sources import SourceName, open_source
from torch import Tensor
from training import Run

KL_WEIGHT = 1e-3
"""Weight of the mean divergence per latent element; keeps latents smooth, not yet blurry."""


def build_vae(width: int) -> AutoencoderKL:
    """Return an untrained autoencoder from (B, 3, 32, 32) to latents of shape (B, 4, 8, 8)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(width, 2 * width, 4 * width),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )


@torch.no_grad()
def measure_scale(vae: AutoencoderKL, pixels: Tensor) -> float:
    """Return the factor that gives the latents of ``pixels`` unit variance.

    Args:
        vae: The trained autoencoder.
        pixels: Images in [0, 1], of shape (B, 3, 32, 32).
    """
    means: Tensor = vae.encode(pixels * 2 - 1).latent_dist.mean
    return 1 / means.std().item()


def main(
    source: SourceName = "digits",
    data: Path = Path("../shared/data/mnist"),
    work: Path = Path("outputs/assets/digits"),
    steps: int = 2000,
    batch: int = 32,
    width: int = 16,
    seed: int = 0,
) -> None:
    """Train an autoencoder and write it to ``work/vae``.

    Args:
        source: Which images to train on.
        data: Folder of their data.
        work: Folder of the checkpoint and the result.
        steps: Number of optimizer steps.
        batch: Images per step.
        width: Channels of the first block.
        seed: Seed of the weights and the batches.
    """
    torch.manual_seed(seed)
    images = open_source(source, data)
    vae = build_vae(width)

    def loss_of(generator: torch.Generator) -> Tensor:
        pixels = images.batch(batch, generator)[0] * 2 - 1
        latent = vae.encode(pixels).latent_dist
        noise = torch.randn(latent.mean.shape, generator=generator)
        error: Tensor = vae.decode(latent.mean + latent.std * noise).sample - pixels
        divergence: Tensor = 0.5 * (latent.mean.square() + latent.var - 1 - latent.logvar).mean()
        return error.abs().mean() + error.square().mean() + KL_WEIGHT * divergence

    def export() -> None:
        pixels = images.batch(512, torch.Generator().manual_seed(seed))[0]
        vae.register_to_config(scaling_factor=round(measure_scale(vae, pixels), 4))
        vae.save_pretrained(work / "vae")
        with torch.no_grad():
            restored = vae(pixels * 2 - 1).sample
        error = (restored / 2 + 0.5 - pixels).square().mean().sqrt().item()
        print(f"scaling factor {vae.config.scaling_factor}, error {error:.4f} RMS", flush=True)

    seconds = Run(vae, work / "vae.pt", steps, 2e-3, seed).train(loss_of, export)
    print(f"trained in {seconds:.0f} s")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
