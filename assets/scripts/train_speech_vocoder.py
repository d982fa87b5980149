"""Train the vocoder of the speech pipeline: spectrograms in, sound out.

python assets/scripts/train_speech_vocoder.py

It is of the class of HiFi-GAN, but without its discriminators: trained on the magnitudes of spectra
of several resolutions (Yamamoto et al., 2020, arXiv:1910.11480).
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from jsonargparse import auto_cli
from speech import LENGTH, RATE, load_recordings
from torch import Tensor, nn
from train_speech_vae import HOP, MEAN, MELS, SPREAD
from training import Run
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig
from transformers.audio_utils import mel_filter_bank

from diffreward.pipelines.audioldm2 import log_mel

WINDOWS = (128, 256, 512, 1024)
"""Samples of a spectrum: 8 to 64 ms."""
FLOOR = 1e-2
"""Least amplitude of a spectral line; a full-scale tone has a few hundred."""
SILENCE = -9.0
"""Log amplitude in a band below which nothing is heard."""
BAND_WEIGHT = 5.0
"""Of the error in bands, which are what is understood, beside that in spectral lines."""
SEGMENT = 24
"""Frames of a training example, half a clip."""
BENDS = torch.tensor([-6.5, -4.0, -2.5, -1.2, 0.0, 1.5])
"""Log amplitudes where the lines meet that stand for the exponential; below them is silence."""
AUDIBLE = 51
"""Bands below 4 kHz; the recordings have nothing above."""
CHANNELS = tuple((band,) for band in range(13)) + tuple(
    (band, band + 1) for band in range(13, AUDIBLE, 2)
)
"""The bands of each of 32 channels, single ones below 600 Hz."""
COPIES = 2
"""How often each recording is kept, each time starting elsewhere."""


def build_vocoder(seed: int) -> SpeechT5HifiGan:
    """Return a vocoder from (B, F, 64) spectrograms to (B, 256 F) samples, not yet trained.

    It begins as a channel vocoder (Dudley, 1939): the amplitude of each band times a piece of noise
    of this band, sixty-two times a second. So it is understood from the first step on, which the
    usual beginning was not after a thousand.

    Args:
        seed: Seed of the noise and of what little the other weights begin with.
    """
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=MELS,
            sampling_rate=RATE,
            upsample_initial_channel=256,
            upsample_rates=[1, 1, 1, HOP],
            upsample_kernel_sizes=[3, 3, 3, 2 * HOP],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1]],
            leaky_relu_slope=0.01,
        )
    )
    vocoder.mean.fill_(MEAN)
    vocoder.scale.fill_(SPREAD)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in vocoder.modules():
            if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
                summands = layer.in_channels * layer.kernel_size[0] / layer.stride[0]
                layer.weight.normal_(0, 0.005 * summands**-0.5, generator=generator)
                layer.bias.zero_()
        _hear_bands(vocoder)
        _sound_bands(vocoder, carriers(generator))
    return vocoder


def _hear_bands(vocoder: SpeechT5HifiGan) -> None:
    """Let the first layers turn logarithms into amplitudes, by a line with five bends."""
    heights = BENDS.exp()
    heights[0] = 0
    slopes = heights.diff() / BENDS.diff()
    for band in range(AUDIBLE):
        for bend, change in enumerate(slopes.diff(prepend=torch.zeros(1))):
            row = band * len(slopes) + bend
            vocoder.conv_pre.weight[row, band, 3] += 1
            vocoder.conv_pre.bias[row] = (MEAN - BENDS[bend]) / SPREAD
            vocoder.upsampler[0].weight[row, band, 1] += change * SPREAD
        vocoder.upsampler[1].weight[band, band, 1] += 1


def _sound_bands(vocoder: SpeechT5HifiGan, pieces: Tensor) -> None:
    """Let the last layers add up the noise of the channels, (32, 512)."""
    pairs = vocoder.conv_post.in_channels // 2
    for channel, (piece, bands) in enumerate(zip(pieces, CHANNELS, strict=True)):
        for band in bands:
            vocoder.upsampler[2].weight[band, channel, 1] += 1 / len(bands)
        place = 2 * (channel % pairs)
        # Once upright, once inverted: what a rectifier leaves of both is the whole.
        vocoder.upsampler[3].weight[channel, place] += piece
        vocoder.upsampler[3].weight[channel, place + 1] -= piece
    signs = torch.tensor([1.0, -1.0]).repeat(pairs)
    vocoder.conv_post.weight[0, :, 3] += signs / 1.01


def carriers(generator: torch.Generator) -> Tensor:
    """A piece of noise for each channel, (32, 512): if repeated, of amplitude 1 in its bands."""
    filters = torch.from_numpy(
        mel_filter_bank(513, MELS, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
    ).float()
    wanted = torch.stack([filters[:, list(bands)].sum(1) for bands in CHANNELS])
    phases = 2 * torch.pi * torch.rand(wanted.shape, generator=generator)
    noise = torch.fft.irfft(torch.polar(wanted.sqrt(), phases))[:, HOP : 3 * HOP]
    pieces = noise * torch.hann_window(2 * HOP)
    folded = pieces.unflatten(1, (2, HOP)).sum(1)
    heard = log_mel(folded.repeat(1, 16), RATE, HOP, MELS)[:, 4:-4].mean(1)
    own = [heard[channel, list(bands)].mean() for channel, bands in enumerate(CHANNELS)]
    return pieces / torch.stack(own).exp()[:, None]


def spectral_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean distance of magnitudes, relative and logarithmic, a scalar.

    Args:
        found: (B, T) float32.
        wanted: (B, T) float32.
    """
    terms = []
    for size in WINDOWS:
        window = torch.hann_window(size)
        ours, theirs = (
            torch.stft(waves, size, size // 4, window=window, return_complex=True)
            .abs()
            .clamp(min=FLOOR)
            for waves in (found, wanted)
        )
        relative = (ours - theirs).norm(dim=(1, 2)) / theirs.norm(dim=(1, 2)).clamp(min=1)
        terms.append(relative.mean() + (ours.log() - theirs.log()).abs().mean())
    return torch.stack(terms).mean()


def band_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean distance of spectrograms where there is sound, in nepers, a scalar."""
    ours, theirs = (log_mel(waves, RATE, HOP, MELS).clamp(min=SILENCE) for waves in (found, wanted))
    return (ours - theirs).abs().mean()


@torch.no_grad()
def restored(vae: AutoencoderKL, mels: Tensor) -> Tensor:
    """Spectrograms (B, F, 64) after the autoencoder, as the pipeline will hand them over."""
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([vae(part[:, None]).sample[:, 0].float() for part in mels.split(50)])


def main(
    data: Path = Path("../shared/data/fsdd/fsdd.parquet"),
    work: Path = Path("outputs/assets/speech"),
    steps: int = 800,
    batch: int = 16,
    seed: int = 0,
    exact: bool = False,
) -> None:
    """Train a vocoder and write it to ``work/vocoder``.

    Args:
        data: The data set.
        work: Folder with the trained autoencoder, of the checkpoint and of the result.
        steps: Number of optimizer steps.
        batch: Segments per step.
        seed: Seed of the weights and the batches.
        exact: Do without the autoencoder, with true spectrograms alone.
    """
    torch.manual_seed(seed)
    recordings = load_recordings(data, "pipeline")
    rows = torch.arange(len(recordings)).repeat(COPIES)
    clips = recordings.clips(rows, torch.Generator().manual_seed(seed))
    mels = [log_mel(clips, RATE, HOP, MELS)]
    if not exact:
        mels.append(restored(AutoencoderKL.from_pretrained(work / "vae"), mels[0]))
    vocoder = build_vocoder(seed)

    def loss_of(generator: torch.Generator) -> Tensor:
        found, wanted = [], []
        for _ in range(batch):
            kind, row, first = (
                int(torch.randint(count, (), generator=generator))
                for count in (len(mels), len(rows), LENGTH // HOP - SEGMENT + 1)
            )
            found.append(mels[kind][row, first : first + SEGMENT])
            wanted.append(clips[row, first * HOP : (first + SEGMENT) * HOP])
        waves, target = vocoder(torch.stack(found)), torch.stack(wanted)
        return spectral_loss(waves, target) + BAND_WEIGHT * band_loss(waves, target)

    @torch.no_grad()
    def export() -> None:
        vocoder.save_pretrained(work / "vocoder")
        for waves in (vocoder(kind[:64]) for kind in mels):
            lines, bands = (loss(waves, clips[:64]).item() for loss in (spectral_loss, band_loss))
            print(f"distance of lines {lines:.3f}, of bands {bands:.3f}", flush=True)

    seconds = Run(vocoder, work / "vocoder.pt", steps, 2e-4, seed, decay=0.99).train(
        loss_of, export, every=100
    )
    print(f"trained in {seconds:.0f} s")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
