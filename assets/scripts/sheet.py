"""A labelled picture of samples."""

from pathlib import Path

import matplotlib.pyplot as plt
from torch import Tensor

from diffreward.rewards.digit_alignment import DigitAlignment
from diffreward.samples import Images


def save_sheet(
    path: Path, prompts: list[str], rows: dict[float, Tensor], judge: DigitAlignment
) -> None:
    """Write a picture with one column per prompt and one row per guidance scale.

    What the judge accepts has a green frame, the rest a red one. The first half of the prompts
    are held-out combinations.

    Args:
        path: File to write.
        prompts: The C prompts.
        rows: Images of shape (C, 3, H, W) by their guidance scale.
        judge: Decides the colour of the frames.
    """
    figure, axes = plt.subplots(
        len(rows), len(prompts), figsize=(len(prompts), 1.15 * len(rows) + 1)
    )
    for line, (guidance, pixels) in zip(axes, rows.items(), strict=True):
        right = judge(Images(pixels), prompts)
        for axis, image, good in zip(line, pixels, right, strict=True):
            axis.imshow(image.permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set(color="tab:green" if good else "tab:red", linewidth=3)
        line[0].set_ylabel(f"guidance {guidance:g}", fontsize=8)
    half = len(prompts) // 2
    for column, (axis, prompt) in enumerate(zip(axes[0], prompts, strict=True)):
        kind = "held out" if column < half else "seen"
        words = prompt.replace(" on ", "\non ").replace(" background", "\nbackground")
        axis.set_title(f"{kind}:\n{words}", fontsize=6.5)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
