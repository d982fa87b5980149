"""Measure the bundled models; writes the quality section of ``assets/README.md`` and a grid.

python assets/scripts/measure_digits.py --data ../shared/data/mnist
"""

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import open_clip
import torch
from degrade import degrade
from diffusers import StableDiffusionPipeline
from digits import (
    Combination,
    Rendered,
    Renderer,
    caption,
    combinations,
    held_out_combinations,
    load_digits,
    seen_combinations,
)
from jsonargparse import auto_cli
from sheet import save_sheet
from torch import Tensor
from train_clip import preprocess

from diffreward.rewards.digit_alignment import PARTS, DigitAlignment
from diffreward.samples import Images

STEPS = 20
MARK = "<!-- written by scripts/measure_digits.py -->"


class ClipScorer:
    """The bundled CLIP model, as a matcher of images with captions.

    Args:
        folder: Folder of the model.
    """

    def __init__(self, folder: Path) -> None:
        name = f"local-dir:{folder}"
        self._model = open_clip.create_model_and_transforms(name)[0].eval()
        self._tokenizer = open_clip.get_tokenizer(name)

    @torch.no_grad()
    def similarities(self, pixels: Tensor, captions: list[str]) -> Tensor:
        """Return the cosine of every image (B, 3, H, W) with every caption, of shape (B, C)."""
        images = [
            self._model.encode_image(preprocess(part), normalize=True) for part in pixels.split(256)
        ]
        texts: Tensor = self._model.encode_text(self._tokenizer(captions), normalize=True)
        return torch.cat(images) @ texts.T


@torch.no_grad()
def round_trip(pipeline: StableDiffusionPipeline, pixels: Tensor) -> Tensor:
    """Return images (B, 3, 32, 32) after the encoder and the decoder of the pipeline."""
    decoded = [pipeline.vae(part * 2 - 1).sample for part in pixels.split(256)]
    return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1)


def cell(values: Tensor) -> str:
    """Return the mean of zeros and ones, with its standard error, in percent."""
    share = values.double().mean().item()
    return f"{100 * share:.1f} ± {100 * (share * (1 - share) / len(values)) ** 0.5:.1f}"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def measure_real(
    pipeline: StableDiffusionPipeline,
    clip: ClipScorer,
    judge: DigitAlignment,
    data: Path,
    count: int,
) -> list[str]:
    """Return a table of what both models recognise in images of digits no model has seen."""
    digits = load_digits(data, "classifier-test")
    generator = torch.Generator().manual_seed(1)
    damage: dict[str, Callable[[Tensor], Tensor]] = {
        "as rendered": lambda pixels: pixels,
        "through the VAE": lambda pixels: round_trip(pipeline, pixels),
        "degraded as in training": lambda pixels: degrade(pixels.clone(), generator),
    }
    rows = []
    for name, allowed in (("seen", seen_combinations()), ("held out", held_out_combinations())):
        drawn = Renderer(digits, allowed).batch(count, generator)
        for kind, change in damage.items():
            pixels = change(drawn.pixels)
            judged = judge.parts(Images(pixels), drawn.captions())
            matched = retrieval(clip, Rendered(pixels, drawn.targets))
            for model, right in (("classifier", judged), ("CLIP", matched)):
                rows.append([model, name, kind, *(cell(right[part]) for part in (*PARTS, "all"))])
    return table(["model", "combinations", "images", *PARTS, "all three"], sorted(rows))


def retrieval(clip: ClipScorer, drawn: Rendered) -> dict[str, Tensor]:
    """Return where the best of all 560 captions has the right digit, ink, ground, and all."""
    candidates = combinations()
    found = clip.similarities(drawn.pixels, [caption(each) for each in candidates]).argmax(1)
    right = (torch.tensor(candidates)[found] == drawn.targets).float()
    return dict(zip(PARTS, right.unbind(1), strict=True)) | {"all": right.prod(1)}


def sample(
    pipeline: StableDiffusionPipeline, prompts: list[str], guidance: float, eta: float, seed: int
) -> Tensor:
    """Return one image per prompt, of shape (B, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        pipeline(
            prompts[start : start + 64], num_inference_steps=STEPS, guidance_scale=guidance,
            eta=eta, generator=generator, output_type="pt",
        ).images
        for start in range(0, len(prompts), 64)
    ]  # fmt: skip
    return torch.cat(parts)


def measure_samples(
    pipeline: StableDiffusionPipeline, clip: ClipScorer, judge: DigitAlignment, count: int
) -> list[str]:
    """Return a table of how well samples show their prompts, by the judge and by CLIP."""
    rows = []
    groups = (("seen", seen_combinations()), ("held out", held_out_combinations()))
    for (name, allowed), eta, guidance in itertools.product(groups, (1.0, 0.0), (1.0, 2.0, 4.0)):
        targets = spread(allowed, count)
        prompts = [caption(target) for target in targets]
        pixels = sample(pipeline, prompts, guidance, eta, seed=2)
        right = judge.parts(Images(pixels), prompts)
        scores = clip.similarities(pixels, prompts).diagonal()
        rows.append([
            name, f"{eta:g}", f"{guidance:g}", *(cell(right[part]) for part in (*PARTS, "all")),
            f"{scores.mean():.3f}", f"{separation(scores, right['all']):.2f}",
        ])  # fmt: skip
        print(*rows[-1], flush=True)
    header = ["combinations", "eta", "guidance", *PARTS, "all three", "CLIP cosine", "AUC"]
    return table(header, rows)


def spread(allowed: list[Combination], count: int) -> list[Combination]:
    """Return ``count`` combinations in which all the allowed ones occur equally often."""
    order = torch.randperm(len(allowed), generator=torch.Generator().manual_seed(0)).tolist()
    return [allowed[order[index % len(order)]] for index in range(count)]


def separation(scores: Tensor, right: Tensor) -> float:
    """Return how often a right image scores above a wrong one (the area under the ROC curve)."""
    above = scores[right == 1][:, None] - scores[right == 0][None, :]
    return ((above > 0).float() + 0.5 * (above == 0).float()).mean().item()


@torch.no_grad()
def measure_speed(pipeline: StableDiffusionPipeline) -> list[str]:
    """Return a table of the median time of one step of the UNet and of decoding."""
    rows = []
    for count in (16, 32, 64):
        latents = torch.randn(count, 4, 8, 8)
        context = torch.randn(count, 16, pipeline.unet.config.cross_attention_dim)
        step = _median_time(partial(pipeline.unet, latents, 500, context))
        decoding = _median_time(partial(pipeline.vae.decode, latents))
        rows.append([str(count), f"{1000 * step:.0f} ms", f"{1000 * decoding:.0f} ms"])
    return table(["batch", "UNet, one step", "VAE, decoding"], rows)


def _median_time(action: Callable[[], object]) -> float:
    times = []
    for _ in range(15):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def write_section(readme: Path, lines: list[str]) -> None:
    """Replace what stands between the two marks of the read-me, or append both."""
    text = readme.read_text() if readme.exists() else ""
    before, _, rest = text.partition(MARK)
    after = rest.partition(MARK)[2]
    readme.write_text("\n".join([before + MARK, "", *lines, "", MARK]) + (after or "\n"))


def main(
    data: Path = Path("../shared/data/mnist"),
    assets: Path = Path("assets"),
    real_count: int = 2000,
    count: int = 560,
) -> None:
    """Measure all models and write the results.

    Args:
        data: Folder of the MNIST test set.
        assets: Folder of the models, the read-me and the grid.
        real_count: Rendered images per row of the first table.
        count: Samples per row of the second table.
    """
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline.from_pretrained(assets / "digits", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    clip = ClipScorer(assets / "digits-clip")
    judge = DigitAlignment(str(assets / "digits-classifier"))
    speed = measure_speed(pipeline)
    real = measure_real(pipeline, clip, judge, data, real_count)
    print("\n".join([*speed, *real]), flush=True)
    prompts = [caption(each) for each in spread(held_out_combinations(), 6)]
    prompts += [caption(each) for each in spread(seen_combinations(), 6)]
    rows = {
        guidance: sample(pipeline, prompts, guidance, 1.0, seed=3) for guidance in (1.0, 2.0, 4.0)
    }
    save_sheet(assets / "digits_grid.png", prompts, rows, judge)
    samples = measure_samples(pipeline, clip, judge, count)
    write_section(assets / "README.md", [
        "Images rendered from digits that no model has seen, percent right ± standard error, "
        f"n = {real_count}:", "", *real, "",
        f"Samples, {STEPS} DDIM steps, percent right by the classifier ± standard error, "
        f"n = {count}:", "", *samples, "",
        f"Time with {torch.get_num_threads()} threads on a CPU, float32, median of 15:", "",
        *speed,
    ])  # fmt: skip


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
