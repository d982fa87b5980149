"""A search that knows no model: mutants of the best variants so far, as directed evolution does."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from diffreward.random import stream
from diffreward.reward import RewardFunction
from diffreward.samples import Tokens


@dataclass(frozen=True)
class Evolution:
    """Generations of mutants; one alone is a library of random mutants.

    Args:
        start: parents of the first generation, (P, L) int64, whose rewards nobody asks for.
        alphabet: of their ids.
        calls: variants that are asked for, in all.
        generations: of which each is as large as the others.
        parents: of every later generation, the best of all before.
        mutations: of a mutant, on average, as each position mutates by itself; none is unmutated.
    """

    start: Tensor
    alphabet: str
    calls: int
    generations: int = 1
    parents: int = 32
    mutations: float = 1.0

    def __call__(self, reward: RewardFunction, samples: int, seed: int) -> Tokens:
        """The best different variants that were asked for, the best one first."""
        source, parents = stream(seed, "evolution"), self.start
        found, scores = self.start[:0], torch.empty(0)
        for _ in range(self.generations):
            children = self.mutants(parents, self.calls // self.generations, source)
            new = reward(Tokens(children, self.alphabet), [""] * len(children))
            found, scores = torch.cat([found, children]), torch.cat([scores, new])
            best = _different(found[scores.argsort(descending=True, stable=True)])
            parents = best[: self.parents]
        return Tokens(best[:samples], self.alphabet)

    def mutants(self, parents: Tensor, n: int, source: Generator) -> Tensor:
        """Of parents by chance, (n, L)."""
        chosen = parents[torch.randint(len(parents), (n,), generator=source)]
        length, symbols = chosen.shape[1], len(self.alphabet)
        places = torch.rand(n, length, generator=source) < self.mutations / length
        one = torch.randint(length, (n, 1), generator=source)
        none = ~places.any(1, keepdim=True)
        places = places | (none & (torch.arange(length) == one))
        steps = torch.randint(1, symbols, (n, length), generator=source)
        return torch.where(places, (chosen + steps) % symbols, chosen)


def _different(rows: Tensor) -> Tensor:
    """The rows in their order, each once."""
    first: dict[bytes, int] = {}
    for i, row in enumerate(rows.tolist()):
        first.setdefault(bytes(row), i)
    return rows[list(first.values())]
