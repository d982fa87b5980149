"""Every steering method on the bundled model at equal denoiser rows, before an independent judge.

python benchmarks/steering.py [1 4 8 16 32] > benchmarks/steering.md

The numbers are particles of best-of-N, and so budgets; several runs can share them.
"""

import sys
import time
from collections.abc import Mapping
from itertools import combinations

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from diffreward import (
    DAS,
    SVDD,
    BeamSearch,
    BestOfN,
    FKSteering,
    Guidance,
    NoiseSearch,
    PathSearch,
    steer,
)
from diffreward.evaluation import measure
from diffreward.prompts import read_prompts
from diffreward.record import Measure
from diffreward.rewards import ClipScore, DigitAlignment
from diffreward.steering import SteeringMethod

STEPS, SEEDS, PARTICLES = 10, (0, 1), (1, 4, 8, 16, 32)
STOCHASTIC = {"eta": 1.0}
METHODS: Mapping[str, tuple[SteeringMethod, Mapping[str, float]]] = {
    "best of N": (BestOfN(), {}),
    "best of N, eta 1": (BestOfN(), STOCHASTIC),
    "noise search": (NoiseSearch(rounds=2), {}),
    "path search": (PathSearch(), {}),
    "beam search": (BeamSearch(), {}),
    "FK steering": (FKSteering(), {}),
    "SVDD": (SVDD(), {}),
    "guidance": (Guidance(), {}),
    "DAS": (DAS(), {}),
}
"""Each with its default settings, and arguments of the pipeline's call."""


def cell(found: Measure) -> str:
    """Mean and standard error."""
    return f"{found.mean:.3f} ± {found.error:.3f}"


def spread(pixels: Tensor) -> Tensor:
    """Root mean square distance of two samples of a prompt: (S, G, 3, H, W) -> (S over 2, G)."""
    pairs = combinations(pixels.unbind(), 2)
    return torch.stack([(a - b).square().flatten(1).mean(1).sqrt() for a, b in pairs])


def main() -> None:
    """Print a table in Markdown."""
    pipe = StableDiffusionPipeline.from_pretrained("assets/digits")
    pipe.set_progress_bar_config(disable=True)
    reward, judge = ClipScore("assets/digits-clip"), DigitAlignment()
    heldout = read_prompts("assets/prompts/digits_heldout.txt")
    print(
        "# Steering the bundled model\n\nMade by `python benchmarks/steering.py`: "
        f"held-out prompts (every second, from 16 particles on every fourth) x {len(SEEDS)} seeds, "
        f"{STEPS} DDIM steps, no guidance, every method with its defaults and `budget=` the "
        "denoiser rows of best-of-N. "
        "Reward: CLIP score of the chosen sample, by which it was steered. All right: an "
        "independent judge sees digit, ink and ground as asked. Diversity: root mean square "
        "distance of the pixels of two chosen samples of one prompt. Seconds: of wall time per "
        f"chosen sample on {torch.get_num_threads()} CPU threads, reward included.\n\n"
        "| rows | method | reward | all right | diversity | scored | seconds |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    for rows in [int(n) for n in sys.argv[1:]] or PARTICLES:
        names = ["best of N"] if rows == 1 else list(METHODS)
        prompts = heldout[:: 2 if rows < 16 else 4]
        for name in names:
            method, call = METHODS[name]
            steered = steer(pipe, reward, method, rows=512, budget=rows * STEPS)
            rewards, right, pixels, scored, start = [], [], [], 0, time.perf_counter()
            for seed in SEEDS:
                noise = [
                    torch.Generator().manual_seed(1000 * seed + i) for i in range(len(prompts))
                ]
                steered(prompts, num_inference_steps=STEPS, guidance_scale=1.0, output_type="pt",
                        generator=noise, **call)  # fmt: skip
                last = steered.last
                rewards.append(last.rewards.gather(1, last.chosen[:, None]).squeeze(1))
                right.append(judge(last.samples, prompts))
                pixels.append(last.samples.pixels)
                scored += last.cost.scored_rows
            n = len(prompts) * len(SEEDS)
            seconds = (time.perf_counter() - start) / n
            cells = [cell(measure(torch.cat(x))) for x in (rewards, right)]
            cells.append(f"{spread(torch.stack(pixels)).mean():.3f}")
            print(
                f"| {rows * STEPS} | {name} | {' | '.join(cells)} | {scored / n:.0f} | "
                f"{seconds:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
