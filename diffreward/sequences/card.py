"""What pretraining leaves: the numbers, and the card beside the pipeline that states them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffreward.record import Measure
from diffreward.sequences.data import Corpus

if TYPE_CHECKING:
    from diffreward.sequences.pipeline import MaskedDiffusionPipeline


@dataclass(frozen=True)
class Pretrained:
    """A finished pipeline and what it is worth.

    Args:
        folder: of the pipeline, to be loaded by `from_pretrained`.
        before: the negative ELBO on the held-out sequences before training, in nats per symbol; its
            error is that of the mean over sequences.
        after: the same of the weights that were saved.
        corpus: what it was trained on.
        seconds: of wall time, in the last leg of the run.
    """

    folder: Path
    before: Measure
    after: Measure
    corpus: Corpus
    seconds: float

    def text(self) -> str:
        """The bound in one line for people."""
        bits = self.after.mean / math.log(2)
        uniform = math.log(len(self.corpus.alphabet))
        return (
            f"negative ELBO on {self.after.n} held-out sequences: {self.after.text(4)} nats per "
            f"symbol ({bits:.4f} bits, perplexity {math.exp(self.after.mean):.4f}); a uniform "
            f"guess has {uniform:.4f}, the untrained network had {self.before.text(4)}"
        )


def write_card(found: Pretrained, pipeline: MaskedDiffusionPipeline) -> None:
    """Write ``README.md`` beside the pipeline, as users of diffusers expect it."""
    from huggingface_hub import ModelCardData

    name = type(pipeline).__name__
    weights = sum(parameter.numel() for parameter in pipeline.denoiser.parameters())
    tags = ["masked-diffusion", "biology", "diffreward"]
    header = ModelCardData(library_name="diffusers", tags=tags).to_yaml()
    lines = [
        f"---\n{header}\n---",
        f"# Masked diffusion of sequences of {found.corpus.length} symbols",
        f"Trained from random weights by `diffreward pretrain`: a "
        f"{type(pipeline.denoiser).__name__} of {weights:,} parameters over the symbols "
        f"{found.corpus.alphabet}. No licence is stated here: see that of the sequences.",
        "## Use",
        f"```python\nfrom {type(pipeline).__module__} import {name}\n\n"
        f'pipe = {name}.from_pretrained("path/or/hub-id/of/this/folder")\n'
        "sequences = pipe(num_inference_steps=128, num_sequences_per_prompt=4).sequences\n```",
        "## Sequences",
        found.corpus.text() + ".",
        "## Likelihood",
        f"The {found.text()}. The ELBO bounds the log-likelihood from below (Sahoo et al., 2024, "
        "arXiv:2406.07524, equation 10); the error is the standard error over sequences.",
    ]
    (found.folder / "README.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
