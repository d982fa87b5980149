"""Train the CLAP model of spoken digits on pairs of a recording and its caption.

python assets/scripts/train_speech_clap.py
"""

from pathlib import Path

import torch
from jsonargparse import auto_cli
from speech import DIGITS, RATE, caption_row, captions, load_recordings
from speech_damage import damage
from speech_text import build_tokenizer, clap_text_config
from torch import Tensor
from torch.nn import functional as F
from training import Run
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor

from diffreward.audio.mel import mel_decibels
from diffreward.audio.windows import repeat_then_pad
from diffreward.backbones import features

WIDTH = 64
"""Of the embeddings."""


def build_extractor() -> ClapFeatureExtractor:
    """Return the front end: one second at 16 kHz, spectra of 32 ms every 10 ms, up to 3.6 kHz."""
    return ClapFeatureExtractor(
        feature_size=32,
        sampling_rate=RATE,
        hop_length=160,
        max_length_s=1,
        fft_window_size=512,
        frequency_min=50,
        frequency_max=3600,
        truncation="rand_trunc",
        padding="repeatpad",
    )


def build_model(text: dict[str, int]) -> ClapModel:
    """Return an untrained model with the given text tower."""
    audio = {
        "spec_size": 64,
        "num_mel_bins": 32,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "window_size": 4,
        "depths": [2, 2, 2],
        "num_attention_heads": [2, 4, 8],
        "patch_embeds_hidden_size": 32,
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "mlp_ratio": 2.0,
    }
    return ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=WIDTH))


def contrastive_loss(sounds: Tensor, texts: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    """Return how badly sounds find their captions and captions their sounds, a scalar.

    Args:
        sounds: Unit vectors, of shape (B, D).
        texts: Unit vectors of all captions, of shape (C, D).
        rows: Which caption describes each sound, of shape (B,).
        scale: Inverse temperature, a scalar.
    """
    logits = scale * sounds @ texts.T
    pairs = logits[:, rows].T
    twins = (rows[:, None] == rows[None, :]) & ~torch.eye(len(rows), dtype=torch.bool)
    pairs = pairs.masked_fill(twins, float("-inf"))
    return (F.cross_entropy(logits, rows) + F.cross_entropy(pairs, torch.arange(len(rows)))) / 2


def main(
    data: Path = Path("../shared/data/fsdd/fsdd.parquet"),
    work: Path = Path("outputs/assets/speech"),
    output: Path = Path("assets/speech-clap"),
    steps: int = 1500,
    batch: int = 64,
    seed: int = 0,
) -> None:
    """Train a CLAP model and write it to ``output``.

    Args:
        data: The data set.
        work: Folder of the checkpoint.
        output: Folder of the model, replaced at every checkpoint.
        steps: Number of optimizer steps.
        batch: Recordings per step.
        seed: Seed of the weights and the batches.
    """
    torch.manual_seed(seed)
    recordings, held_out = (load_recordings(data, part) for part in ("pipeline", "test"))
    tokenizer, extractor = build_tokenizer(), build_extractor()
    model = build_model(clap_text_config(tokenizer, 48))
    tokens = tokenizer(captions(), padding=True, return_tensors="pt")
    filters = torch.from_numpy(extractor.mel_filters_slaney).float()
    length = int(extractor.nb_max_samples)

    def embed(waves: Tensor) -> Tensor:
        levels = mel_decibels(repeat_then_pad(waves, length), filters, extractor.hop_length)
        return features(model.get_audio_features(input_features=levels[:, None]))

    def embed_captions() -> Tensor:
        return features(
            model.get_text_features(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            )
        )

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(recordings), (batch,), generator=generator)
        waves = damage(recordings.clips(rows, generator), generator)
        loudness = 10 ** (0.4 * torch.rand(batch, 1, generator=generator) - 0.3)
        named = torch.rand(batch, generator=generator) < 0.5
        texts = caption_row(recordings.digits[rows], recordings.speakers[rows], named)
        with torch.autocast("cpu", torch.bfloat16):
            sounds = embed(waves * loudness)
        scale = model.logit_scale_a.exp().clamp(max=100)
        # A sound fits both of its captions; it competes with those of the same kind.
        of_kind = torch.where(named, 1, 0)
        losses = []
        for kind, columns in enumerate((slice(0, len(DIGITS)), slice(len(DIGITS), None))):
            chosen = of_kind == kind
            losses.append(
                contrastive_loss(
                    sounds[chosen].float(),
                    embed_captions()[columns],
                    texts[chosen] - (columns.start or 0),
                    scale,
                )
            )
        return torch.stack(losses).mean()

    @torch.no_grad()
    def export() -> None:
        model.eval()
        model.save_pretrained(output)
        ClapProcessor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(output)
        # What transformers before version 5 reads.
        extractor.save_pretrained(output)
        found = embed(held_out.audio().waves[:, 0]) @ embed_captions().T
        digits = (found[:, : len(DIGITS)].argmax(1) == held_out.digits).float().mean()
        both = caption_row(held_out.digits, held_out.speakers, torch.ones(len(found)).bool())
        right = (found[:, len(DIGITS) :].argmax(1) + len(DIGITS) == both).float().mean()
        print(f"held out: digits {digits:.3f} of 10, with speaker {right:.3f} of 60", flush=True)
        model.train()

    seconds = Run(model, work / "clap.pt", steps, 1e-3, seed, decay=0.995).train(
        loss_of, export, every=250
    )
    print(f"trained in {seconds:.0f} s")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
