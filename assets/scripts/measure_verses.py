"""Measure the text pipeline; writes the section on its quality of ``assets/README.md``.

python assets/scripts/measure_verses.py --data ../shared/data/rewards/text
"""

import math
import re
import time
from pathlib import Path

import torch
from diffusers import LLaDA2Pipeline
from jsonargparse import auto_cli
from ngrams import best_bigram, unigram
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from verses import Plays, draw_masks, masked_nats, read_plays, tokenize

MARK = "<!-- written by scripts/measure_verses.py -->"
PROMPT = "ROMEO:"
LENGTH = 96
"""Tokens per window of the bound, the longest of training."""
BLOCK, STEPS = 32, (32, 16, 8, 4)
"""Tokens per block, and the numbers of steps per block that are compared."""


def estimate_bound(pipeline: LLaDA2Pipeline, windows: Tensor, draws: int) -> Tensor:
    """Return an estimate of the bound on -log p of each window, in nats, of shape (B,).

    Args:
        pipeline: Holds the model.
        windows: Tokens, of shape (B, L), the first of which is given.
        draws: Maskings per window.
    """
    generator = torch.Generator().manual_seed(0)
    mask = pipeline.tokenizer.mask_token_id
    rows, length = windows.shape
    sums = torch.zeros(rows)
    for _ in range(draws):
        masks = draw_masks(torch.ones(rows, dtype=torch.int64), length, generator)
        parts = zip(windows.split(64), masks.split(64), strict=True)
        sums += torch.cat([masked_nats(pipeline.model, *part, mask) for part in parts])
    return sums * (length - 1) / draws


def gram_sums(train: Tensor, held: Tensor, inside: Tensor, size: int) -> list[float]:
    """Return -log p, in nats, of a part of a text by unigram and by bigram.

    Args:
        train: Symbols in their order, of shape (T,).
        held: Held-out symbols in their order, of shape (S,).
        inside: Which of them count, of shape (S,).
        size: Number of symbols.
    """
    # Before the first line there was, as at its end, the end of a line.
    pairs = best_bigram(train, held, size)[held.roll(1), held]
    singles = unigram(train, size)[held]
    return [-log_p[inside].sum().item() for log_p in (singles, pairs)]


def measure_bound(pipeline: LLaDA2Pipeline, data: Path, draws: int) -> list[str]:
    """Return a table of nats and bits per held-out character."""
    texts = read_plays(data, "train"), read_plays(data, "held out")
    train, held = (tokenize(text, pipeline.tokenizer) for text in texts)
    windows = held.apart(LENGTH)
    bodies = windows[:, None] + torch.arange(LENGTH - 1)
    inside = torch.zeros(len(held.ids), dtype=torch.bool).index_fill(0, bodies.flatten(), True)
    letters = sorted(set("".join(texts)))
    symbols = [torch.tensor([letters.index(letter) for letter in text]) for text in texts]
    lettered = inside.repeat_interleave(held.characters)
    nats = estimate_bound(pipeline, held.windows(windows, LENGTH), draws)
    lengths = held.characters[bodies].sum(1)
    # The standard error of a ratio of sums over windows.
    error = (nats - lengths * nats.sum() / lengths.sum()).std() * len(nats) ** 0.5
    sums = [
        *gram_sums(*symbols, lettered, len(letters)),
        *gram_sums(train.ids, held.ids, inside, len(pipeline.tokenizer)),
        nats.sum().item(),
    ]
    names = [
        *("unigram of characters", "bigram of characters", "unigram of tokens", "bigram of tokens"),
        "`verses/`, upper bound",
    ]
    characters = int(lengths.sum())
    rates = [total / characters for total in sums]
    rows = [
        f"| {name} | {rate:.3f} | {rate / math.log(2):.2f} |"
        for name, rate in zip(names, rates, strict=True)
    ]
    head = ["| | nats per character | bits per character |", "| --- | --- | --- |"]
    note = f"The bound's standard error is {error / characters:.3f} nats"
    count = f"{len(nats)} windows of {LENGTH} tokens, {characters:,} characters in all"
    return [*head, *rows, "", f"{note}, over {count}."]


def known_share(texts: list[str], known: set[str]) -> tuple[float, float]:
    """Return the mean over texts of their share of known words, in percent, and its error.

    Words cut by the end of a text are not counted.
    """
    lists = [words(text.rpartition(" ")[0]) for text in texts]
    shares = torch.tensor([sum(word in known for word in each) / len(each) for each in lists]) * 100
    return shares.mean().item(), (shares.std() / len(shares) ** 0.5).item()


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower())


def generate(pipeline: LLaDA2Pipeline, count: int, steps: int) -> list[str]:
    """Return ``count`` continuations of the prompt by 64 tokens, in the plainest order."""
    output = pipeline(
        prompt=[PROMPT] * count,
        gen_length=64,
        block_length=BLOCK,
        num_inference_steps=steps,
        temperature=1.0,
        sampling_method="multinomial",
        # More than one: exactly so many tokens as the steps share out are kept in each step.
        threshold=2.0,
        editing_threshold=None,
        use_chat_template=False,
        generator=torch.Generator().manual_seed(0),
    )
    return list(output.texts)


def drawn_from_bigram(pipeline: LLaDA2Pipeline, train: Plays, held: Plays, count: int) -> list[str]:
    """Return as many texts of 64 tokens, each drawn given the last one only."""
    table = best_bigram(train.ids, held.ids, len(pipeline.tokenizer)).exp()
    generator = torch.Generator().manual_seed(0)
    newline = pipeline.tokenizer.convert_tokens_to_ids("Ċ")
    tokens = [torch.full((count,), newline)]
    for _ in range(64):
        tokens.append(torch.multinomial(table[tokens[-1]], 1, generator=generator).squeeze(1))
    return list(pipeline.tokenizer.batch_decode(torch.stack(tokens[1:], 1)))


def measure_samples(pipeline: LLaDA2Pipeline, data: Path, count: int) -> list[str]:
    """Return a table of known words in samples, and two of the samples."""
    texts = read_plays(data, "train"), read_plays(data, "held out")
    known = set(words(texts[0]))
    train, held = (tokenize(text, pipeline.tokenizer) for text in texts)
    real = pipeline.tokenizer.batch_decode(held.windows(held.apart(65)[:count], 65)[:, 1:])
    rows = []

    def add(name: str, samples: list[str], seconds: str) -> None:
        mean, error = known_share(samples, known)
        rows.append(f"| {name} | {mean:.1f} ± {error:.1f} | {seconds} |")

    shown: list[str] = []
    for steps in STEPS:
        start = time.perf_counter()
        samples = generate(pipeline, count, steps)
        add(
            f"{steps} steps per block of {BLOCK}",
            samples,
            f"{time.perf_counter() - start:.1f} s",
        )
        shown = shown or samples[:2]
    add("bigram of tokens", drawn_from_bigram(pipeline, train, held, count), "")
    add("held-out text", real, "")
    head = ["| | known words, percent | time |", "| --- | --- | --- |"]
    quotes = [line for text in shown for line in ["", "```text", PROMPT + text, "```"]]
    return [*head, *rows, "", "The first two samples of the first row:", *quotes]


def write_section(readme: Path, lines: list[str]) -> None:
    """Replace what stands between the two marks of the read-me.

    Raises:
        ValueError: if it has no such marks.
    """
    before, _, after = readme.read_text().split(MARK)
    readme.write_text("\n".join([before + MARK, "", *lines, "", MARK]) + after)


@torch.no_grad()
def main(
    data: Path = Path("../shared/data/rewards/text"),
    assets: Path = Path("assets"),
    draws: int = 8,
    count: int = 64,
) -> None:
    """Measure the pipeline and write the results.

    Args:
        data: Folder with ``tinyshakespeare.txt``.
        assets: Folder of the pipeline and the read-me.
        draws: Maskings per window of the bound.
        count: Samples per row of the second table.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(assets / "verses" / "tokenizer")
    pipeline = LLaDA2Pipeline.from_pretrained(assets / "verses", tokenizer=tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    likelihood = measure_bound(pipeline, data, draws)
    print("\n".join(likelihood), flush=True)
    samples = measure_samples(pipeline, data, count)
    print("\n".join(samples), flush=True)
    write_section(assets / "README.md", [
        "Likelihood of the last tenth of the plays:", "", *likelihood, "",
        f"{count} continuations of `{PROMPT}` by 64 tokens at temperature 1: the share of their "
        "words that occur in the training text,",
        f"and the time for all of them on a CPU (threads: {torch.get_num_threads()}):",
        "", *samples,
    ])  # fmt: skip


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
