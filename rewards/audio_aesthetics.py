"""Aesthetics of sound: the rating that people would give, from a small head on an embedding.

Source: the custom music aesthetics of DRAGON (Bai et al., 2025, arXiv:2504.15217), a head on CLAP
embeddings of rated clips. Its ratings and weights were not published, so the head is a file of
one's own; `assets/scripts/train_speech_aesthetics.py` trains one on a stated rule. As there, labels
are normalised for training and the windows of a longer sound are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from diffreward.embedding import Embedding, EmbeddingFunction
from diffreward.reward import Reward
from diffreward.samples import Samples


class AudioAesthetics(Reward):
    """The rating that a head gives the mean row of an embedding, on the scale of its labels.

    Differentiable in the samples if the embedding is. Ratings of heads trained on 1 to 5 may leave
    this range. An embedding that was trained to forget quality leaves a head little to see, and a
    head can be fooled wherever its embedding can.

    Args:
        embedding: maps samples and prompts to (B, R, D).
        head: a safetensors file with linear layers ``0.weight`` (H, D), ``0.bias`` (H,),
            ``1.weight`` and so on, GELU between them; the last one has one output.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the layers do not fit each other, or end in more than one number.
    """

    def __init__(self, embedding: Embedding | EmbeddingFunction, head: str) -> None:
        path = Path(head).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no head at {path.absolute()}; train one with "
                "assets/scripts/train_speech_aesthetics.py"
            )
        self.embedding = embedding
        self.head = head
        self._layers = _layers(load_file(path), head)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B samples to ratings, (B,) float32; the prompts matter to the embedding only.

        Raises:
            ValueError: if the head is for embeddings of another dimension.
        """
        rows = self.embedding(samples, prompts).float().mean(1)
        expected = self._layers[0][0].shape[1]
        if rows.shape[1] != expected:
            raise ValueError(f"{self.head} takes {expected} numbers, got {rows.shape[1]}")
        *hidden, (weight, bias) = [(w.to(rows.device), b.to(rows.device)) for w, b in self._layers]
        for w, b in hidden:
            rows = F.gelu(F.linear(rows, w, b))
        return F.linear(rows, weight, bias)[:, 0]


def _layers(state: Mapping[str, Tensor], head: str) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases in their order, float32."""
    names = [f"{i}.{part}" for i in range(len(state) // 2) for part in ("weight", "bias")]
    if not names or sorted(names) != sorted(state):
        raise ValueError(f"{head} holds {sorted(state)}; expected 0.weight, 0.bias, 1.weight, ...")
    layers = [
        (state[w].float(), state[b].float()) for w, b in zip(names[::2], names[1::2], strict=True)
    ]
    shapes = [tuple(weight.shape) for weight, _ in layers]
    if any(a[0] != b[1] for a, b in pairwise(shapes)) or shapes[-1][0] != 1:
        raise ValueError(f"the layers of {head} have the shapes {shapes}; the last gives 1 number")
    return layers
