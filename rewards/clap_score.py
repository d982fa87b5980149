"""CLAP score: how well a sound fits its prompt, by the cosine of their CLAP embeddings.

Source: Wu et al. (2023), arXiv:2211.06687. The cosine itself, not the logits: those are the cosine
times the model's own scale, about 20 to 100. A sound that is longer than the model's window gets
the mean over windows that are always the same, where published code takes a random extract.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from diffreward.embeddings.clap import ClapEmbedding
from diffreward.reward import Reward
from diffreward.samples import Samples


class ClapScore(Reward):
    """Cosine similarity of sound and prompt, in [-scale, scale]. Differentiable in the waves.

    The model is loaded by the first call, in float32, onto the device of the waves; sounds are
    brought to its rate and length as `ClapEmbedding` says. A prompt is embedded once.

    Args:
        model: a hub id or a folder of a transformers `ClapModel` with its feature extractor and
            tokenizer.
        hop: seconds from one window of a longer sound to the next; those of a window if not given.
        prefix: put before each prompt, with its space if it needs one.
        scale: what the cosine is multiplied by.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if the hop is not positive.
    """

    def __init__(
        self,
        model: str = "laion/clap-htsat-unfused",
        hop: float | None = None,
        prefix: str = "",
        scale: float = 1.0,
    ) -> None:
        self.embedding = ClapEmbedding(model, hop)
        self.prefix = prefix
        self.scale = scale

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        windows = self.embedding(samples, prompts)
        texts = self.embedding.embed_text(
            [self.prefix + prompt for prompt in prompts], windows.device
        )
        return self.scale * (windows * texts[:, None]).sum(-1).mean(1)
