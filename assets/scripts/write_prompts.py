"""Write the prompt files of the seen and of the held-out combinations.

From the root of the repository:

    python assets/scripts/write_prompts.py
"""

import random
from pathlib import Path

from digits import Combination, caption, held_out_combinations, seen_combinations
from jsonargparse import auto_cli


def main(output: Path = Path("assets/prompts")) -> None:
    """Write one prompt a line.

    Args:
        output: Folder of the two files.
    """
    output.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Combination]] = {
        "digits_train.txt": seen_combinations(),
        "digits_heldout.txt": held_out_combinations(),
    }
    for name, combinations in files.items():
        # So that the first few prompts, which reports show, are of all kinds.
        random.Random(0).shuffle(combinations)
        (output / name).write_text("".join(f"{caption(each)}\n" for each in combinations))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
