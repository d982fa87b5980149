"""Every fine-tuning method on the bundled model, at equal denoiser rows and at equal time.

python benchmarks/methods.py run all --seeds 0 1 --output runs/methods      one file per run
python benchmarks/methods.py table runs/methods > benchmarks/methods.md
"""

import inspect
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import runs
from diffreward.algorithm import Algorithm, Batch
from diffreward.config import instantiate, parse, training_parser
from diffreward.diffusion import decode, rollout
from diffreward.learner import Learner
from diffreward.policy import LoRA, Policy
from diffreward.processes import Processes
from diffreward.prompts import prompts_of_update, read_prompts
from diffreward.random import stream
from diffreward.replay import path_kl
from diffreward.reward import RewardFunction
from diffreward.rewards import DigitAlignment
from diffreward.samples import images
from diffreward.settings import Training

PROMPTS, SAMPLES, EACH = 16, 8, 4
"""Prompts per update, samples of each; samples of each held-out prompt."""
TRAINING = Training(learning_rate=3e-3, ema_decay=0.9, rows=128)
"""Of all methods alike; the rate is constant, so that a budget does not change what came before."""
OWN = Path("benchmarks/digits")
"""What some methods need instead: files called as their classes."""
ROWS, SECONDS = 20_000, 75
"""The budgets, the second of one CPU core."""
BEST_OF = (1, 2, 4, 8, 16)
HEAD = f"""# Fine-tuning the bundled model by every method

Made by `python benchmarks/methods.py`: the model, reward and adapters of the demonstration, each
method with its defaults, and for all the same AdamW at {TRAINING.learning_rate}, average of weights
({TRAINING.ema_decay}), {PROMPTS} prompts x {SAMPLES} samples per update. What `benchmarks/digits`
has of a method holds for it; where that is another number of denoising steps the row says what the
model was worth with it before training. A run is measured when it has spent its budget of denoiser
rows (all that enter the network: sampling, both passes and what is computed again), and again when
it has spent that of seconds (of one CPU core).

Means over seeds ± standard error over seeds, on {EACH} samples of each of 112 held-out prompts.
Reward: the CLIP score that was trained on. All right: an independent judge sees digit, ink and
ground as asked. KL: from the model before training, of whole paths, in nats, an upper bound of that
of finished samples; for best of N it is log N - (N - 1) / N, of finished samples. Diversity: root
mean square distance of the pixels of two samples of one prompt.
"""


def parts(method: str) -> Any:
    """Model, reward and prompts of the demonstration, and a method with its settings."""
    parser, own = training_parser(), OWN / f"{method}.yaml"
    arguments = ["--config", "configs/demo.yaml", "--learning_rate", str(TRAINING.learning_rate)]
    if own.is_file():
        arguments += ["--config", str(own)]
    elif method:
        arguments += ["--algorithm", method]
    return instantiate(parser, parse(parser, arguments))


def measures(policy: Policy, reward: RewardFunction, seed: int) -> dict[str, float]:
    """Means over samples of the held-out prompts."""
    prompts = read_prompts("assets/prompts/digits_heldout.txt")
    repeated = [prompt for prompt in prompts for _ in range(EACH)]
    sources = [stream(seed, "benchmark", i) for i in range(len(repeated))]
    diffusion = policy.diffusion
    path = rollout(diffusion, diffusion.encode(repeated), sources, sources, policy.rows)
    samples = decode(diffusion, path.clean)
    with torch.no_grad():
        scores, right = reward(samples, repeated), DigitAlignment()(samples, repeated)
    return {
        "reward": float(scores.mean()),
        "right": float(right.mean()),
        "kl": float(path_kl(policy, path).mean()),
        "diversity": spread(images(samples).unflatten(0, (-1, EACH))),
    }


def spread(pixels: Tensor) -> float:
    """Root mean square distance of two samples of one prompt, (P, G, 3, H, W)."""
    pairs = combinations(pixels.unbind(1), 2)
    distances = [(a - b).square().flatten(1).mean(1).sqrt() for a, b in pairs]
    return float(torch.stack(distances).mean())


def run(name: str, seed: int) -> runs.Run:
    """Train until both budgets are spent; measure when each is."""
    if name.startswith("best of"):
        return {"method": name, "seed": seed, "base": best_of(int(name.split()[-1]), seed)}
    made = parts(name)
    training = replace(TRAINING, learning_rate=made.learning_rate)
    policy = LoRA(made.adaptation.rank, targets=made.adaptation.targets).attach(
        made.diffusion, TRAINING.rows, seed
    )
    learner = Learner(policy, training, Processes(training).accelerator)
    counted, prompts = runs.Rows(policy.diffusion.network), read_prompts(made.prompts)
    found: dict[str, Any] = {"method": name, "seed": seed}
    found["steps"] = policy.diffusion.num_steps
    found["before"] = measures(policy, made.reward, seed)
    spent, trained, update = 0.0, 0, 0
    while not {"rows", "seconds"} <= found.keys():
        update += 1
        start, counted.count = time.process_time(), 0
        batch = Batch(prompts_of_update(prompts, update, PROMPTS, seed), SAMPLES, seed, update)
        runs.learn(made.algorithm, policy, learner, made.reward, batch, made.learning_rate)
        spent, trained = spent + time.process_time() - start, trained + counted.count
        for budget, done in (("rows", trained >= ROWS), ("seconds", spent >= SECONDS)):
            if done and budget not in found:
                with learner.averaged():
                    found[budget] = measures(policy, made.reward, seed)
                found[budget] |= {"updates": update, "at": [trained, spent]}
    return found


@torch.no_grad()
def best_of(n: int, seed: int) -> dict[str, float]:
    """The base model, the best of n samples by the reward."""
    made = parts("")
    prompts = read_prompts("assets/prompts/digits_heldout.txt")
    repeated = [prompt for prompt in prompts for _ in range(EACH * n)]
    sources = [stream(seed, "benchmark", i) for i in range(len(repeated))]
    path = rollout(made.diffusion, made.diffusion.encode(repeated), sources, sources, 128)
    samples = decode(made.diffusion, path.clean)
    scores = made.reward(samples, repeated).unflatten(0, (-1, n))
    chosen = scores.argmax(1) + n * torch.arange(len(scores))
    right = DigitAlignment()(samples[chosen], [repeated[i] for i in chosen.tolist()])
    return {
        "reward": float(scores.amax(1).mean()),
        "right": float(right.mean()),
        "kl": math.log(n) - (n - 1) / n,
        "diversity": spread(images(samples[chosen]).unflatten(0, (-1, EACH))),
    }


def table(finished: list[runs.Run]) -> Iterator[str]:
    """The runs in Markdown, the highest reward at equal rows first."""
    tuned = [found for found in finished if "rows" in found]
    order = sorted({found["method"] for found in tuned}, key=lambda name: -_mean(tuned, name))
    yield HEAD
    yield "| | reward | all right | KL | diversity | updates | rows | seconds |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for n in BEST_OF:
        same = [found for found in finished if found["method"] == f"best of {n}"]
        label = "the model" if n == 1 else f"best of {n}"
        if not same:
            continue
        yield f"| {label} | {' | '.join(_cells([found['base'] for found in same]))} | | | |"
    for budget in ("rows", "seconds"):
        yield f"| **at equal {budget}** | | | | | | | |"
        for name in order:
            same = [found[budget] for found in tuned if found["method"] == name]
            cost = [
                fmean(s["updates"] for s in same),
                *map(fmean, zip(*(s["at"] for s in same), strict=True)),
            ]
            cells = [*_cells(same), *(f"{value:.0f}" for value in cost)]
            yield f"| {name}{_before(tuned, name)} | {' | '.join(cells)} |"


def _before(tuned: list[runs.Run], name: str) -> str:
    """What the model was worth, of a method that samples in its own number of steps."""
    same = [found for found in tuned if found["method"] == name and found.get("steps", 4) != 4]
    if not same:
        return ""
    reward, right = (fmean(found["before"][m] for found in same) for m in ("reward", "right"))
    return f" ({same[0]['steps']} steps, before {reward:.3f} and {right:.3f})"


def _mean(tuned: list[runs.Run], name: str) -> float:
    return fmean(found["rows"]["reward"] for found in tuned if found["method"] == name)


def _cells(found: list[dict[str, float]]) -> list[str]:
    digits = {"reward": 3, "right": 3, "kl": 2, "diversity": 3}
    return [runs.cell([one[name] for one in found], digits[name]) for name in digits]


def methods(kind: type) -> Iterator[str]:
    """The names of the final classes under one."""
    for below in kind.__subclasses__():
        yield from methods(below)
    if not inspect.isabstract(kind):
        yield kind.__name__


def names() -> list[str]:
    """Of all runs."""
    parts("")  # imports all methods
    return [*sorted(methods(Algorithm)), *(f"best of {n}" for n in BEST_OF)]


if __name__ == "__main__":
    runs.main(__doc__, names, run, table)
