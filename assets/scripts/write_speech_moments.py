"""Write what sets of sounds are compared with: the moments of the exemplars in the CLAP model.

From the root of the repository, after write_speech.py and train_speech_clap.py:

    python assets/scripts/write_speech_moments.py
"""

from pathlib import Path

from jsonargparse import auto_cli
from safetensors.torch import load_file

from diffreward.embeddings.clap import ClapEmbedding
from diffreward.moments import Moments
from diffreward.samples import Audio


def main(
    exemplars: Path = Path("assets/speech-exemplars"), model: Path = Path("assets/speech-clap")
) -> None:
    """Write a file beside each exemplar set.

    Args:
        exemplars: Folder of the sets.
        model: The CLAP model that they are seen through.
    """
    embedding = ClapEmbedding(str(model))
    for name in ("all", "clear"):
        stored = load_file(exemplars / f"{name}.safetensors")
        sounds = Audio(stored["waves"].float()[:, None] / 32768, int(stored["rate"]))
        moments = Moments.of_samples(embedding, [(sounds, [""] * len(sounds))])
        about = {"embedding": "ClapEmbedding assets/speech-clap", "source": f"{name}.safetensors"}
        moments.save(exemplars / f"{name}-clap.safetensors", about)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
