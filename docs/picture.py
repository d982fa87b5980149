"""Draw the picture of the README: the samples of a run before and after, side by side.

python docs/picture.py RUN docs/demo.png
"""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

COLUMNS = 12
MEASURE = "all right"


def draw(run: Path, output: Path) -> None:
    """Draw all kept samples of the first and of the last evaluation."""
    updates = sorted((run / "samples").iterdir())
    ends = {"before": updates[0], "after": updates[-1]}
    indices = {
        label: json.loads((folder / "index.json").read_text(encoding="utf-8"))
        for label, folder in ends.items()
    }
    blocks = len(indices["before"]) // COLUMNS
    figure = Figure(figsize=(1.15 * COLUMNS, 2.75 * blocks), layout="constrained")
    axes = figure.subplots(2 * blocks, COLUMNS)
    for row, (block, label) in enumerate((b, label) for b in range(blocks) for label in ends):
        axes[row, 0].set_ylabel(label, fontsize=11)
        items = indices[label][block * COLUMNS : (block + 1) * COLUMNS]
        for axis, item in zip(axes[row], items, strict=True):
            axis.imshow(Image.open(ends[label] / item["file"]), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set(color="#2da44e" if item["scores"][MEASURE] else "#d0d7de", linewidth=3)
            if label == "before":
                prompt = item["prompt"].removesuffix(" background")
                axis.set_title(prompt.replace(" on ", "\non "), fontsize=7.5)
    figure.savefig(output, dpi=100)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
