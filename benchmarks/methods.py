"""Every fine-tuning method on the bundled model, at equal denoiser rows and at equal time.

python benchmarks/methods.py run DDPO PRDP --seeds 0 1 --output runs/methods    one run each
python benchmarks/methods.py run all --output runs/methods
python benchmarks/methods.py table runs/methods > benchmarks/methods.md

A run that is there already is not repeated, so several processes can share a folder.
"""

import argparse
import inspect
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

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


class Rows:
    """Counts the rows that go through a network."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.count = 0
        network.register_forward_pre_hook(self._add)

    def _add(self, network: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.count += len(inputs[0])


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


def run(name: str, seed: int, rows: int, seconds: float) -> dict[str, Any]:
    """Train until both budgets are spent; measure when each is."""
    made = parts(name)
    training = replace(TRAINING, learning_rate=made.learning_rate)
    policy = LoRA(made.adaptation.rank, targets=made.adaptation.targets).attach(
        made.diffusion, TRAINING.rows, seed
    )
    learner = Learner(policy, training, Processes(training).accelerator)
    counted, prompts = Rows(policy.diffusion.network), read_prompts(made.prompts)
    found: dict[str, Any] = {"method": name, "seed": seed}
    found["steps"] = policy.diffusion.num_steps
    found["before"] = measures(policy, made.reward, seed)
    spent, trained, update = 0.0, 0, 0
    while not {"rows", "seconds"} <= found.keys():
        update += 1
        start, counted.count = time.process_time(), 0
        batch = Batch(prompts_of_update(prompts, update, PROMPTS, seed), SAMPLES, seed, update)
        learn(made.algorithm, policy, learner, made.reward, batch, made.learning_rate)
        spent, trained = spent + time.process_time() - start, trained + counted.count
        for budget, done in (("rows", trained >= rows), ("seconds", spent >= seconds)):
            if done and budget not in found:
                with learner.averaged():
                    found[budget] = measures(policy, made.reward, seed)
                found[budget] |= {"updates": update, "at": [trained, spent]}
    return found


def learn(
    algorithm: Algorithm,
    policy: Policy,
    learner: Learner,
    reward: RewardFunction,
    batch: Batch,
    rate: float,
) -> None:
    """One update, as the training loop makes it."""
    experience = algorithm.collect(policy, reward, batch)
    for inner_step in range(algorithm.inner_steps):
        metrics = learner.accumulate(algorithm.losses(policy, experience, inner_step), 1.0)
        learner.gradient_norm()
        learner.step(rate)
    if algorithm.penalty.weight:
        algorithm.penalty.adapt(policy, metrics["penalty"])


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


def table(folder: Path) -> Iterator[str]:
    """The runs of a folder in Markdown, the highest reward at equal rows first."""
    texts = [file.read_text() for file in sorted(folder.glob("*.json"))]
    runs = [json.loads(text) for text in texts if text]  # a run that goes on is still empty
    tuned = [found for found in runs if "rows" in found]
    names = sorted({found["method"] for found in tuned}, key=lambda name: -_mean(tuned, name))
    yield HEAD
    yield "| | reward | all right | KL | diversity | updates | rows | seconds |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for n in BEST_OF:
        same = [found for found in runs if found["method"] == f"best of {n}"]
        label = "the model" if n == 1 else f"best of {n}"
        if not same:
            continue
        yield f"| {label} | {' | '.join(_cells([found['base'] for found in same]))} | | | |"
    for budget in ("rows", "seconds"):
        yield f"| **at equal {budget}** | | | | | | | |"
        for name in names:
            same = [found[budget] for found in tuned if found["method"] == name]
            cost = [
                fmean(s["updates"] for s in same),
                *map(fmean, zip(*(s["at"] for s in same), strict=True)),
            ]
            cells = [*_cells(same), *(f"{value:.0f}" for value in cost)]
            yield f"| {name}{_before(runs, name)} | {' | '.join(cells)} |"


def _before(runs: list[dict[str, Any]], name: str) -> str:
    """What the model was worth, of a method that samples in its own number of steps."""
    same = [found for found in runs if found["method"] == name and found.get("steps", 4) != 4]
    if not same:
        return ""
    reward, right = (fmean(found["before"][m] for found in same) for m in ("reward", "right"))
    return f" ({same[0]['steps']} steps, before {reward:.3f} and {right:.3f})"


def _mean(runs: list[dict[str, Any]], name: str) -> float:
    return fmean(found["rows"]["reward"] for found in runs if found["method"] == name)


def _cells(found: list[dict[str, float]]) -> list[str]:
    """Mean over seeds and, of several, its standard error."""
    cells = []
    for name, digits in (("reward", 3), ("right", 3), ("kl", 2), ("diversity", 3)):
        values = [one[name] for one in found]
        text = f"{fmean(values):.{digits}f}"
        if len(values) > 1:
            text += f" ± {stdev(values) / len(values) ** 0.5:.{digits}f}"
        cells.append(text)
    return cells


def methods(kind: type) -> Iterator[str]:
    """The names of the final classes under one."""
    for below in kind.__subclasses__():
        yield from methods(below)
    if not inspect.isabstract(kind):
        yield kind.__name__


def main() -> None:
    """Run, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("methods", nargs="+", help="class names, or all")
    running.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    running.add_argument("--rows", type=int, default=20_000, help="the first budget")
    running.add_argument("--seconds", type=float, default=75, help="the second, of one CPU core")
    running.add_argument("--output", type=Path, required=True)
    commands.add_parser("table").add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.command == "table":
        print("\n".join(table(given.folder)))
        return
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    names = given.methods
    if names == ["all"]:
        parts("")  # imports all methods
        names = sorted(methods(Algorithm))
        names += [f"best of {n}" for n in BEST_OF]
    for seed in given.seeds:
        for name in names:
            file = given.output / f"{name}-{seed}.json".replace(" ", "-")
            if file.exists():
                continue
            file.touch()
            if name.startswith("best of"):
                base = best_of(int(name.split()[-1]), seed)
                found: dict[str, Any] = {"method": name, "seed": seed, "base": base}
            else:
                found = run(name, seed, given.rows, given.seconds)
            file.write_text(json.dumps(found))
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
