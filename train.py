"""Fine-tune a diffusion model: python train.py [--config FILE] [--any.option VALUE ...].

The same as `diffreward train`, except that without --config it takes the demonstration's.
"""

import sys
from pathlib import Path

from diffreward.cli import main

DEMO = Path(__file__).parent / "configs" / "demo.yaml"

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not any(argument.split("=")[0] == "--config" for argument in arguments):
        arguments = ["--config", str(DEMO), *arguments]
    main(["train", *arguments])
