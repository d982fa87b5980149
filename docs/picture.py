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
    """Draw the first samples of the first and of the last evaluation."""
    updates = sorted((run / "samples").iterdir())
    figure = Figure(figsize=(1.15 * COLUMNS, 3.3), layout="constrained")
    axes = figure.subplots(2, COLUMNS)
    for row, (label, folder) in enumerate([("before", updates[0]), ("after", updates[-1])]):
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))[:COLUMNS]
        axes[row, 0].set_ylabel(label, fontsize=11)
        for axis, item in zip(axes[row], index, strict=True):
            axis.imshow(Image.open(folder / item["file"]), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            color = "#2da44e" if item["scores"][MEASURE] else "#d0d7de"
            for side in axis.spines.values():
                side.set(color=color, linewidth=3)
            if row == 0:
                prompt = item["prompt"].removesuffix(" background")
                axis.set_title(prompt.replace(" on ", "\non "), fontsize=7.5)
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
