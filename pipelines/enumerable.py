"""Chains on so few states that every law is summed exactly: masked diffusion and plain tables.

A state is a sequence of L symbols out of S; state number i has the digits of i in base S, the first
position leading. Every step draws the L symbols independently given the state.

Source: masked diffusion as in Sahoo et al. (2024), NeurIPS, arXiv:2406.07524, with the linear
schedule; the data are a given joint table, so the denoiser is exact. The soft-optimal chain is
Levine (2018), arXiv:1805.00909, equations 7 to 11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreward.diffusion import Condition, Diffusion, Step, Trajectory
from diffreward.enumeration import joint, number, sequences
from diffreward.random import Source, randn, stream
from diffreward.samples import Samples, Tokens, tokens
from diffreward.sequences.tilted_law import conditionals
from diffreward.transitions import Categorical

SYMBOLS = "ACGTBDEFHIJKLMNOPQRSUVWXYZ"


@dataclass(frozen=True)
class Tables:
    """The laws of a chain before training, as float64 probabilities.

    Args:
        prior: of each symbol of x_0, (S,).
        steps: of each symbol of x_{k+1} given the state x_k, (K, S^L, L, S).
        forward: of a symbol of x_k given that of x_K, (K, S, S): row x_K.
        bridge: of a symbol of x_{k+1} given those of x_k and x_K, (K, S, S, S): row x_k, x_K.
        clean: the x_K predicted from the state x_k, (K, S^L, L) int64.
    """

    prior: Tensor
    steps: Tensor
    forward: Tensor
    bridge: Tensor
    clean: Tensor


class TableDenoiser(nn.Module):
    """The logits of every step from every state: the log of a table plus a trainable one.

    Args:
        steps: as in `Tables`; steps of probability zero stay so.
    """

    reference: Tensor

    def __init__(self, steps: Tensor) -> None:
        super().__init__()
        self.register_buffer("reference", steps.log())
        self.correction = nn.Parameter(torch.zeros_like(steps))

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        """Logits of x_{k+1}, (B, L, S), at ids (B, L) or relaxed ids (B, L, S) and steps k, (B,).

        In relaxed ids they are multilinear, and forbid what the states of positive weight forbid.
        """
        if x.ndim == 2:
            rows = number(x, self.reference.shape[-1])
            return self.reference[k, rows] + self.correction[k, rows]
        weights, impossible = joint(x.to(self.reference.dtype)), self.reference[k] == -torch.inf
        tables = self.reference[k].masked_fill(impossible, 0) + self.correction[k]
        allowed = torch.einsum("bn,bnls->bls", weights.detach(), (~impossible).to(weights)) > 0
        logits = torch.einsum("bn,bnls->bls", weights, tables)
        return logits.masked_fill(~allowed, -torch.inf)


class EnumerableChain(Diffusion):
    """A diffusion on sequences with exact sums over all of its states; prompts are ignored.

    The clean prediction is one whole sequence (for masked diffusion the likeliest symbol of each
    position), so that any reward on tokens can score it. It stays that of the untrained chain.

    Args:
        tables: the untrained chain.
        alphabet: the V <= S symbols of clean sequences; later symbols are masks.
    """

    def __init__(self, tables: Tables, alphabet: str) -> None:
        self.tables, self.alphabet = tables, alphabet
        _, self.num_states, self.length, self.num_symbols = tables.steps.shape
        self._network: nn.Module = TableDenoiser(tables.steps)

    @property
    def num_steps(self) -> int:
        return len(self.tables.steps)

    @property
    def stochastic_steps(self) -> Sequence[int]:
        return range(self.num_steps)

    @property
    def network(self) -> nn.Module:
        return self._network

    @network.setter
    def network(self, module: nn.Module) -> None:
        self._network = module

    def encode(self, prompts: Sequence[str]) -> Condition:
        return Condition(tuple(prompts), {})

    def prior(self, n: int, source: Source = None) -> Tensor:
        x = Categorical(self.tables.prior.log().expand(n, self.length, -1)).sample(source)
        return x.to(next(self.network.parameters()).device)

    def step(self, x: Tensor, k: int, condition: Condition) -> Step:
        logits = self.network(x, torch.full((len(x),), k, device=x.device))
        ids = x.argmax(-1) if x.ndim == 3 else x
        clean = self.tables.clean.to(x.device)[k, number(ids, self.num_symbols)]
        return Step(Categorical(logits), clean)

    def corrupt(self, clean: Tensor, t: Tensor, source: Source = None) -> tuple[Tensor, Tensor]:
        """Draw x_k given x_K; the target is the law of x_{k+1} given both, (B, L, S)."""
        k, tables = self._step_at(t), self.tables
        noisy = Categorical(tables.forward.log().to(clean.device)[k[:, None], clean]).sample(source)
        return noisy, tables.bridge.to(clean.device)[k[:, None], noisy, clean]

    def predict(self, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The logits of x_{k+1}, (B, L, S)."""
        logits: Tensor = self.network(noisy, self._step_at(t))
        return logits

    def matching_error(self, output: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy of one term of the evidence lower bound, in nats per position."""
        log_p = output.log_softmax(-1)
        error: Tensor = -(target * log_p.masked_fill(target == 0, 0)).sum(-1)
        return error.mean(-1)

    def output_kl(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return Categorical(ours).kl(Categorical(theirs))

    def relaxed(self, x: Tensor) -> Tensor:
        return F.one_hot(x, self.num_symbols).double() if x.ndim == 2 else x

    def decode(self, x: Tensor) -> Samples:
        """Tokens.

        Raises:
            ValueError: if a position is still masked.
        """
        size = len(self.alphabet)
        if bool((x[..., size:] != 0).any() if x.ndim == 3 else (x >= size).any()):
            raise ValueError("a masked position has no symbol; decode clean states")
        return Tokens(x[..., :size] if x.ndim == 3 else x, self.alphabet)

    def latents(self, samples: Samples) -> Tensor:
        ids = tokens(samples)
        return ids.argmax(-1) if ids.ndim == 3 else ids

    def states(self) -> Tensor:
        """All states in the order of their numbers, (S^L, L)."""
        return sequences(self.num_symbols, self.length)

    def sequences(self) -> Tensor:
        """All clean sequences, the order of `log_law`, (V^L, L)."""
        return sequences(len(self.alphabet), self.length)

    def log_prior(self) -> Tensor:
        """Log-mass of x_0 in each state, (S^L,)."""
        return self.tables.prior.log()[self.states()].sum(1)

    def log_kernel(self, k: int) -> Tensor:
        """Log p(x_{k+1} | x_k) from each state to each, (S^L, S^L); differentiable."""
        states = self.states()
        log_p = self.network(states, torch.full((len(states),), k)).log_softmax(-1).cpu()
        return torch.stack([log_p[:, i, states[:, i]] for i in range(self.length)]).sum(0)

    def log_law(self) -> Tensor:
        """Log-mass of x_K in each clean sequence, (V^L,); differentiable."""
        p = self.log_prior().exp()
        for k in range(self.num_steps):
            p = p @ self.log_kernel(k).exp()
        return p[number(self.sequences(), self.num_symbols)].log()

    def step_log_probs(self, states: Tensor) -> Tensor:
        """Log p(x_{k+1} | x_k) along P paths, (P, K + 1, L) -> (P, K); differentiable."""
        n = number(states, self.num_symbols)
        steps = [self.log_kernel(k)[n[:, k], n[:, k + 1]] for k in range(self.num_steps)]
        return torch.stack(steps, 1)

    @torch.no_grad()
    def paths(self) -> Trajectory:
        """All P paths that can happen, each once; their probabilities are in `log_probs`."""
        path = self.log_prior().isfinite().nonzero()
        for k in range(self.num_steps):
            row, following = self.log_kernel(k)[path[:, -1]].isfinite().nonzero(as_tuple=True)
            path = torch.cat([path[row], following[:, None]], 1)
        states = self.states()[path]
        steps, condition = tuple(range(self.num_steps)), self.encode([""] * len(states))
        return Trajectory(states, steps, self.step_log_probs(states), condition)

    def _step_at(self, t: Tensor) -> Tensor:
        """The step from time t on; uniform t give uniform steps, and 0 still gives the last."""
        return ((1 - t) * self.num_steps).long().clamp(max=self.num_steps - 1)


@dataclass(frozen=True)
class TableReward:
    """The entry of a table: (V^L,) rewards in the order of `EnumerableChain.sequences`.

    On relaxed tokens its multilinear extension, which is differentiable.
    """

    table: Sequence[float] | Tensor

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        ids = tokens(samples)
        table = torch.as_tensor(self.table, dtype=torch.float32, device=ids.device)
        if ids.ndim == 3:
            return joint(ids.float()) @ table
        return table[number(ids, round(len(table) ** (1 / ids.shape[1])))]


def random_law(symbols: int = 4, length: int = 3, seed: int = 0) -> Tensor:
    """A joint law of `length` dependent symbols, (symbols^length,): softmax of normal numbers."""
    return randn((symbols**length,), stream(seed, "law")).double().softmax(0)


def masked_chain(
    law: Tensor | None = None, symbols: int = 4, length: int = 3, num_steps: int = 4, seed: int = 0
) -> EnumerableChain:
    """Masked diffusion of a law, (symbols^length,), by default a random one.

    The last symbol of a state is the mask. A position stays masked up to step k with probability
    1 - k / K; the last step leaves no mask. Needs K L (V + 1)^(L + 1) numbers: length 6 or less.
    """
    law = random_law(symbols, length, seed) if law is None else law.double()
    states, keep = sequences(symbols + 1, length), torch.eye(symbols + 1, dtype=torch.float64)
    masked, eye = (states == symbols)[..., None], keep[:, :symbols]
    shown = torch.where(masked, conditionals(law, symbols), eye[states])
    steps, forward, bridge = [], [], []
    for k in range(num_steps):
        u = 1 / (num_steps - k)  # of unmasking, so that 1 - (k + 1) / K = (1 - k / K) (1 - u)
        hidden = torch.where(masked, 1 - u, 0.0)
        steps.append(torch.cat([torch.where(masked, u, 1.0) * shown, hidden], -1))
        forward.append(k / num_steps * keep + (1 - k / num_steps) * keep[symbols])
        bridge.append(keep[:, None].repeat(1, symbols + 1, 1))
        bridge[k][symbols] = u * keep + (1 - u) * keep[symbols]
    clean = shown.argmax(-1).expand(num_steps, -1, -1)
    stacked = torch.stack(steps), torch.stack(forward), torch.stack(bridge)
    return EnumerableChain(Tables(keep[symbols], *stacked, clean), SYMBOLS[:symbols])


def tabular_chain(kernels: Tensor, prior: Tensor | None = None) -> EnumerableChain:
    """The chain of given kernels, (K, S, S) with rows p(x_{k+1} | x_k), on single symbols.

    Args:
        kernels: one per step.
        prior: of x_0, (S,); uniform by default.
    """
    num_steps, size, _ = kernels.shape
    prior = torch.full((size,), 1 / size, dtype=torch.float64) if prior is None else prior
    law, to_end = [prior], [torch.eye(size, dtype=torch.float64)]
    for k in range(num_steps):
        law.append(law[-1] @ kernels[k])
        to_end.insert(0, kernels[num_steps - 1 - k] @ to_end[0])
    forward = [(law[k][:, None] * to_end[k] / law[-1]).T for k in range(num_steps)]  # Bayes
    bridge = [
        kernels[k][:, None] * to_end[k + 1].T / to_end[k][..., None] for k in range(num_steps)
    ]
    clean = torch.stack(to_end[:-1]).argmax(-1, keepdim=True)
    tables = Tables(prior, kernels[:, :, None], torch.stack(forward), torch.stack(bridge), clean)
    return EnumerableChain(tables, SYMBOLS[:size])


def random_kernels(
    states: int = 4, num_steps: int = 2, memoryless: bool = False, seed: int = 0
) -> Tensor:
    """Random kernels for `tabular_chain`, (K, S, S); if memoryless, x_1 does not depend on x_0."""
    kernels = randn((num_steps, states, states), stream(seed, "kernels")).double().softmax(-1)
    if memoryless:
        kernels[0] = kernels[0, :1]
    return kernels


def tilt(log_law: Tensor, rewards: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The log of the law proportional to p exp(scale * reward), (n,), and the log evidence."""
    log_joint = log_law + scale * rewards
    return log_joint.log_softmax(0), log_joint.logsumexp(0)


def soft_optimum(
    chain: EnumerableChain, rewards: Tensor, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The chain that maximises E[r] - KL(path || reference) / scale from the same prior.

    Args:
        chain: the reference, with its present weights.
        rewards: of the clean sequences, (V^L,).
        scale: 1 / beta.

    Returns:
        The soft values of the states at k = 0, ..., K, (K + 1, S^L), in nats: soft Bellman; and
        the optimal log-kernels, (K, S^L, S^L).
    """
    values = [torch.full((chain.num_states,), -math.inf, dtype=torch.float64)]
    values[0][number(chain.sequences(), chain.num_symbols)] = scale * rewards.double()
    kernels: list[Tensor] = []
    with torch.no_grad():
        for k in reversed(range(chain.num_steps)):
            log_joint = chain.log_kernel(k) + values[0]
            values.insert(0, log_joint.logsumexp(1))
            kernels.insert(0, log_joint - values[0][:, None])
    return torch.stack(values), torch.stack(kernels)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the sum of the absolute differences of two laws on the same states, in [0, 1]."""
    return (p - q).abs().sum(-1) / 2
