"""Train a head that rates recordings of speech from 1 to 5, on embeddings of the CLAP model.

python assets/scripts/train_speech_aesthetics.py

No one has rated these recordings. The ratings follow a rule instead: a recording as it is has 5,
and each step of one of four kinds of damage costs a point.
"""

from pathlib import Path

import torch
from jsonargparse import auto_cli
from safetensors.torch import save_file
from speech import RATE, Recordings, load_recordings
from speech_damage import DAMAGES
from torch import Tensor, nn

from diffreward.embeddings.clap import ClapEmbedding
from diffreward.samples import Audio

BEST, WORST = 5.0, 1.0


@torch.no_grad()
def rated(
    embedding: ClapEmbedding, recordings: Recordings, copies: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Damaged recordings and their ratings.

    Args:
        embedding: of what is heard.
        recordings: each is damaged in every way, ``copies`` times.
        copies: see above.
        seed: of the severities and the damage.

    Returns:
        The mean rows of the embeddings, (N, D), and the ratings, (N,).
    """
    generator = torch.Generator().manual_seed(seed)
    rows, ratings = [], []
    for harm in [harm for harm in DAMAGES for _ in range(copies)]:
        for part in torch.arange(len(recordings)).split(50):
            waves = recordings.clips(part, generator)
            severity = torch.rand(len(part), generator=generator)
            severity[torch.rand(len(part), generator=generator) < 0.1] = 0
            heard = Audio(harm(waves, severity[:, None], generator)[:, None], RATE)
            rows.append(embedding(heard, [""] * len(part)).mean(1))
            ratings.append(BEST - (BEST - WORST) * severity)
    return torch.cat(rows), torch.cat(ratings)


def correlations(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Pearson's and Spearman's correlation of two rows of numbers, (N,)."""
    ranks = [values.argsort().argsort().float() for values in (found, wanted)]
    pairs = ((found, wanted), ranks)
    pearson, spearman = (torch.corrcoef(torch.stack(list(pair)))[0, 1].item() for pair in pairs)
    return pearson, spearman


def main(
    data: Path = Path("../shared/data/fsdd/fsdd.parquet"),
    clap: str = "assets/speech-clap",
    output: Path = Path("assets/speech-clap/aesthetics.safetensors"),
    epochs: int = 30,
    width: int = 64,
    seed: int = 0,
) -> None:
    """Train a head and write it.

    Args:
        data: The data set.
        clap: Folder of the CLAP model.
        output: The file to write.
        epochs: How often each rating is seen.
        width: Of the hidden layer.
        seed: Of the damage, the weights and the order.
    """
    torch.manual_seed(seed)
    embedding = ClapEmbedding(clap)
    rows, ratings = rated(embedding, load_recordings(data, "pipeline"), 1, seed)
    unseen, wanted = rated(embedding, load_recordings(data, "test"), 1, seed + 1)
    mean, spread = ratings.mean(), ratings.std()
    head = nn.Sequential(nn.Linear(rows.shape[1], width), nn.GELU(), nn.Linear(width, 1))
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for part in torch.randperm(len(rows)).split(64):
            loss = (head(rows[part])[:, 0] - (ratings[part] - mean) / spread).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    with torch.no_grad():
        # The file gives ratings themselves.
        head[2].weight *= spread
        head[2].bias.mul_(spread).add_(mean)
        found = head(unseen)[:, 0]
    error = (found - wanted).square().mean().sqrt().item()
    pearson, spearman = correlations(found, wanted)
    print(f"held out: Pearson {pearson:.3f}, Spearman {spearman:.3f}, error {error:.2f} RMS")
    for harm, kept, true in zip(DAMAGES, found.chunk(4), wanted.chunk(4), strict=True):
        print(f"  {harm.__name__}: Pearson {correlations(kept, true)[0]:.3f}")
    layers = {"0": head[0], "1": head[2]}
    save_file(
        {
            f"{name}.{part}": value.detach().contiguous()
            for name, layer in layers.items()
            for part, value in layer.named_parameters()
        },
        output,
    )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
