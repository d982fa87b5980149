"""Steering on the bundled model: what the reward gains, and whether an independent judge agrees.

python benchmarks/steering_digits.py > benchmarks/steering_digits.md
"""

import torch

from diffreward.evaluation import measure
from diffreward.pipelines.stable_diffusion import StableDiffusion
from diffreward.prompts import read_prompts
from diffreward.record import Measure
from diffreward.rewards.clip_score import ClipScore
from diffreward.rewards.digit_alignment import DigitAlignment
from diffreward.steering import BestOfN, FKSteering, SteeringMethod, steer_diffusion

SEEDS = range(4)
METHODS: dict[str, SteeringMethod] = {
    "the model itself": BestOfN(1),
    "best of 4": BestOfN(4),
    "FK steering, 4 particles, scale 10": FKSteering(4, scale=10, interval=2),
    "FK steering, 4 particles, scale 50": FKSteering(4, scale=50, interval=2),
    "FK steering, 4 particles, scale 50, maximum": FKSteering(
        4, scale=50, interval=2, potential="max"
    ),
    "best of 16": BestOfN(16),
    "FK steering, 16 particles, scale 50": FKSteering(16, scale=50, interval=2),
}


def cell(found: Measure) -> str:
    """Mean and standard error."""
    return f"{found.mean:.3f} ± {found.error:.3f}"


def main() -> None:
    """Print a table in Markdown."""
    diffusion = StableDiffusion("assets/digits", num_steps=10, guidance_scale=1.0)
    reward, judge = ClipScore("assets/digits-clip"), DigitAlignment()
    prompts = read_prompts("assets/prompts/digits_heldout.txt")
    print(
        "# Steering the bundled model\n\nMade by `python benchmarks/steering_digits.py`. Held-out "
        f"prompts, {len(prompts)} x {len(SEEDS)} seeds, 10 DDIM steps, eta 1, no guidance. Reward: "
        "CLIP score of the chosen sample. All right: the independent judge sees digit, ink and "
        "ground as asked. Cost per chosen sample: rows through the network, samples decoded and "
        "scored.\n\n| method | reward | all right | network rows | scored |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for name, method in METHODS.items():
        rewards, right, rows, scored = [], [], 0, 0
        for seed in SEEDS:
            steered = steer_diffusion(diffusion, reward, prompts, method, seed)
            rewards.append(steered.rewards.gather(1, steered.chosen[:, None]).squeeze(1))
            right.append(judge(steered.samples, prompts))
            rows, scored = rows + steered.cost.network_rows, scored + steered.cost.scored_rows
        n = len(prompts) * len(SEEDS)
        cells = cell(measure(torch.cat(rewards))), cell(measure(torch.cat(right)))
        print(f"| {name} | {' | '.join(cells)} | {rows / n:.0f} | {scored / n:.0f} |")


if __name__ == "__main__":
    main()
