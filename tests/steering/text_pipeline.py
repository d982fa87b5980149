"""Text pipelines of diffusers whose networks know their data, and their chains' laws by sums.

The laws are written down here a second time, so that nothing that steers is tested against itself:
for uniform corruption from the posterior of D3PM, Austin et al. (2021), arXiv:2107.03006; for
blocks of masks by going through all that the commits by confidence can do.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    BlockRefinementScheduler,
    DiffusionPipeline,
    DiscreteDDIMScheduler,
    LLaDA2Pipeline,
)
from diffusers.utils import BaseOutput
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Generator, Tensor, nn
from transformers import PreTrainedTokenizerFast

from diffreward.enumeration import joint, number, sequences
from diffreward.random import randn, stream
from diffreward.samples import Samples, texts

LETTERS = "ABC"
V = len(LETTERS)
MASK, EOS, SYMBOLS = V, V + 1, V + 2


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter, a mask and an end."""
    words = {**{letter: i for i, letter in enumerate(LETTERS)}, "<mask>": MASK, "<eos>": EOS}
    letters = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    letters.decoder = decoders.Fuse()
    marks = {"mask_token": "<mask>", "eos_token": "<eos>", "pad_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=letters, **marks)


def data_law(length: int) -> Tensor:
    """Of all sequences by their numbers, (V^L,) float64: of no symmetry, so without ties."""
    return randn((V**length,), stream(0, "data", length)).double().softmax(0)


@dataclass(frozen=True)
class TableReward:
    """The reward of each text of this length, by its number."""

    rewards: Tensor

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        ids = torch.tensor([[LETTERS.index(letter) for letter in t] for t in texts(samples)])
        return self.rewards[number(ids, V)]


class Network(nn.Module):
    """Answers with the logits that a function gives."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, logits: Callable[..., Tensor]) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, ids: Tensor, timestep: int = 0, **ignored: Any) -> Any:
        return SimpleNamespace(logits=self.logits(ids, timestep))


# Uniform corruption, DiscreteDDIMScheduler.


def uniform_posterior(law: Tensor, length: int, alpha: float) -> Tensor:
    """The law of each clean token given all noisy ones, (V^L, L, V)."""
    kernel = alpha * torch.eye(V, dtype=torch.float64) + (1 - alpha) / V
    clean = sequences(V, length)
    noisy = kernel[clean[:, None], clean].prod(-1)  # row x_t, column x_0
    weights = noisy * law
    weights = weights / weights.sum(1, keepdim=True)
    return torch.stack([(weights[..., None] * one_hot).sum(1) for one_hot in _one_hots(clean)], 1)


def uniform_chain(law: Tensor, length: int, steps: int) -> Tensor:
    """The law of the finished sequences, (V^L,): tokens of a step are drawn independently."""
    mass = torch.full((V**length,), V**-length, dtype=torch.float64)
    states, identity = sequences(V, length), torch.eye(V, dtype=torch.float64)
    for k in range(steps):
        alpha, alpha_next = k / steps, (k + 1) / steps
        kept = alpha / alpha_next
        likelihood = kept * identity + (1 - kept) / V  # row x_s, column x_t
        prior = alpha_next * identity + (1 - alpha_next) / V  # row x_0, column x_s
        bridge = likelihood.T[:, None, :] * prior  # x_t, x_0, x_s
        bridge = bridge / bridge.sum(-1, keepdim=True)
        clean = uniform_posterior(law, length, alpha)
        mass = mass @ joint(torch.einsum("nlc,nlcs->nls", clean, bridge[states]))
    return mass


@dataclass
class WrittenOutput(BaseOutput):
    """Ids (B, L) and texts."""

    sequences: Tensor
    texts: list[str]


class UniformPipeline(DiffusionPipeline):
    """Writes one text of L letters per prompt, from letters at random."""

    def __init__(self, model: nn.Module, scheduler: Any, tokenizer: Any, length: int) -> None:
        super().__init__()
        self.register_modules(model=model, scheduler=scheduler, tokenizer=tokenizer)
        self.length = length
        self.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str],
        num_inference_steps: int = 4,
        temperature: float = 1.0,
        generator: Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.randint(V, (len(prompt), self.length), generator=generator)
        for t in self.scheduler.timesteps:
            logits = self.model(x, t.item()).logits
            x = self.scheduler.step(
                logits, t, x, temperature=temperature, generator=generator
            ).prev_sample
        written = self.tokenizer.batch_decode(x)
        return WrittenOutput(sequences=x, texts=written) if return_dict else (x, written)


def uniform_pipeline(law: Tensor, length: int, steps: int) -> UniformPipeline:
    """A pipeline that knows its data; its calls make this many steps."""
    tables = [uniform_posterior(law, length, k / steps).log() for k in range(steps)]
    network = Network(lambda ids, k: tables[k][number(ids, V)].float())
    return UniformPipeline(network, DiscreteDDIMScheduler(), tokenizer(), length)


# Masks in blocks, BlockRefinementScheduler.

PROMPT = "AB"
"""As long as a block, so that it does not share one with what is written."""


def masked_posterior(law: Tensor, length: int, state: Sequence[int]) -> Tensor:
    """The law of each clean token of a window given those that are no masks, (n, V)."""
    clean = sequences(V, length)
    fits = torch.ones(V**length, dtype=torch.bool)
    for i, token in enumerate(state):
        fits &= (clean[:, i] == token) | (token == MASK)
    weights = (law * fits) / (law * fits).sum()
    return torch.stack([(weights[:, None] * hot).sum(0) for hot in _one_hots(clean)])[: len(state)]


def masked_chain(law: Tensor, length: int, block: int) -> Tensor:
    """The law of the finished sequences if each step commits the surest of the drawn tokens."""
    masses = {(): 1.0}
    for window in range(block, length + 1, block):
        masses = {(*state, *[MASK] * block): mass for state, mass in masses.items()}
        for _ in range(block):
            after: dict[tuple[int, ...], float] = {}
            for state, mass in masses.items():
                clean = masked_posterior(law, length, state)
                masks = [i for i in range(window - block, window) if state[i] == MASK]
                for drawn in itertools.product(range(V), repeat=len(masks)):
                    chances = [clean[masks[j], token].item() for j, token in enumerate(drawn)]
                    surest = chances.index(max(chances))
                    moved = list(state)
                    moved[masks[surest]] = drawn[surest]
                    weight = mass * math.prod(chances)
                    after[tuple(moved)] = after.get(tuple(moved), 0.0) + weight
            masses = after
    found = torch.zeros(V**length, dtype=torch.float64)
    for state, mass in masses.items():
        found[number(torch.tensor(state), V)] = mass
    return found


def masked_pipeline(law: Tensor, length: int) -> LLaDA2Pipeline:
    """LLaDA2 with a network that knows the data behind the prompt."""
    tables: dict[tuple[int, ...], Tensor] = {}

    def logits(ids: Tensor, timestep: int) -> Tensor:
        answers = []
        for state in map(tuple, ids[:, len(PROMPT) :].tolist()):
            if state not in tables:
                known = masked_posterior(law, length, state).log().float()
                filled = torch.full((ids.shape[1], SYMBOLS), -torch.inf)
                filled[: len(PROMPT), 0] = 0.0
                filled[len(PROMPT) :, :V] = known
                tables[state] = filled
            answers.append(tables[state])
        return torch.stack(answers)

    return written_by(logits)


def written_by(logits: Callable[[Tensor, int], Tensor]) -> LLaDA2Pipeline:
    """LLaDA2 with a network of this function."""
    pipe = LLaDA2Pipeline(Network(logits), BlockRefinementScheduler(), tokenizer())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _one_hots(clean: Tensor) -> list[Tensor]:
    """Of each position of all sequences, L tensors (V^L, V)."""
    return list(nn.functional.one_hot(clean, V).double().unbind(1))
