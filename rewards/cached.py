"""A reward that remembers: equal samples are scored once, in a batch and from call to call.

Steering with discrete diffusion asks for the same sequences again and again: most candidates of a
step equal each other or their parent. The fixed samples of an evaluation are the same pictures for
every reward that is asked about them. Where the reward is an oracle, a judge that is paid for or a
laboratory's queue, what counts is how many different samples it has seen.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffreward.reward import Reward, RewardFunction, score
from diffreward.samples import Samples


class Cached(Reward):
    """The scores of another reward, asked once for each different pair of sample and prompt.

    A sample is known by its content: symbols and strings as they are, tensors by a 128-bit hash of
    their bytes, shape and dtype. Samples of which a gradient is wanted go straight through and are
    not remembered: a score that is known has none. A sample without a score is not remembered
    either, and is tried again when it comes again.

    The reward must depend on nothing but the sample and its prompt.

    Args:
        reward: of which at most one call is made per batch, with the new samples only.
        size: scores to remember, a few hundred bytes each whatever the size of the samples; those
            not asked for the longest are forgotten first.

    Raises:
        ValueError: if nothing could be remembered.
    """

    def __init__(self, reward: Reward | RewardFunction, size: int = 100_000) -> None:
        if size < 1:
            raise ValueError(f"size is at least 1, got {size}")
        self.reward = reward
        self.size = size
        self._remembered: OrderedDict[Hashable, float] = OrderedDict()

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        if torch.is_grad_enabled() and _is_differentiated(samples):
            return score(self.reward, samples, prompts)
        keys = _keys(samples, prompts)
        known = {key: self._remembered[key] for key in keys if key in self._remembered}
        rows = {key: row for row, key in reversed([*enumerate(keys)]) if key not in known}
        if rows:
            new = sorted(rows.values())
            chosen = samples[torch.tensor(new, device=samples.device)]
            scores = score(self.reward, chosen, [prompts[row] for row in new])
            known |= zip((keys[row] for row in new), scores.tolist(), strict=True)
        self._remember(keys, known)
        return torch.tensor([known[key] for key in keys], device=samples.device)

    def _remember(self, keys: Sequence[Hashable], known: dict[Hashable, float]) -> None:
        for key in keys:
            if known[key] == known[key]:
                self._remembered[key] = known[key]
                self._remembered.move_to_end(key)
        while len(self._remembered) > self.size:
            self._remembered.popitem(last=False)


def _is_differentiated(samples: Samples) -> bool:
    return any(isinstance(v, Tensor) and v.requires_grad for v in vars(samples).values())


def _keys(samples: Samples, prompts: Sequence[str]) -> list[Hashable]:
    """What tells each sample and its prompt from all others."""
    columns = [_column(value, len(prompts)) for value in vars(samples).values()]
    return [(type(samples), *row) for row in zip(prompts, *columns, strict=True)]


def _column(value: Any, rows: int) -> Sequence[Hashable]:
    """The content of a field of samples, one entry per sample."""
    if isinstance(value, Tensor):
        kind = (value.dtype, value.shape[1:])
        # As bytes, for numpy knows no bfloat16.
        flat = value.detach().cpu().reshape(rows, math.prod(value.shape[1:])).contiguous()
        contents = flat.view(torch.uint8).numpy()
        return [(kind, hashlib.blake2b(row, digest_size=16).digest()) for row in contents]
    return value if isinstance(value, tuple) else [value] * rows
