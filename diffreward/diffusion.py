"""A pretrained diffusion model as every algorithm sees it, and the paths it produces.

Steps are numbered k = 0, ..., K - 1 from noise to data: x_0 is noise, x_K is the clean state.
Papers that count down write x_T for our x_0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffreward.random import Source
from diffreward.samples import Samples, concatenate
from diffreward.schedules.kernels import noise_in
from diffreward.schedules.levels import Level
from diffreward.transitions import Dirac, Transition


@dataclass(frozen=True)
class Condition:
    """What B chains are conditioned on.

    Args:
        prompts: the B prompts.
        tensors: whatever the family's network takes (embeddings, masks, ...), each (B, ...).
    """

    prompts: tuple[str, ...]
    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Tensor) -> Condition:
        """The conditions of some chains, in the order of rows (int64 of any length)."""
        prompts = tuple(self.prompts[i] for i in rows.tolist())
        return Condition(prompts, {name: t[rows.to(t.device)] for name, t in self.tensors.items()})


@dataclass(frozen=True)
class Step:
    """What one (guided) evaluation of the network at x_k gives.

    Args:
        transition: p(x_{k+1} | x_k, c).
        clean: the network's prediction of the clean state, E[x_K | x_k, c], (B, *event).
    """

    transition: Transition
    clean: Tensor

    def __getitem__(self, rows: Tensor) -> Step:
        return Step(self.transition[rows], self.clean[rows])

    def detach(self) -> Step:
        """The same step without the graph that made it."""
        return Step(self.transition.detach(), self.clean.detach())


@dataclass
class Spared:
    """Rows that a family did not evaluate because it remembered them."""

    rows: int = 0


class Diffusion(ABC):
    """The reverse process p(x_0) prod_k p(x_{k+1} | x_k, c) of one model family.

    To support a family, write the methods below in one file of ``pipelines/``; then
    `diffreward.conformance.check_diffusion` says what is still wrong with it.
    """

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """K, the number of denoising steps."""

    @property
    @abstractmethod
    def stochastic_steps(self) -> Sequence[int]:
        """The steps k whose transition has a density, in ascending order; empty for an ODE."""

    @property
    def deterministic(self) -> bool:
        """Whether no step has a density; families know it before anything is loaded."""
        return not self.stochastic_steps

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The denoiser: what fine-tuning trains."""

    @network.setter
    @abstractmethod
    def network(self, module: nn.Module) -> None:
        """Use another module with the same interface (a frozen copy, a compiled one)."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Condition:
        """The condition of B prompts, without gradient."""

    @abstractmethod
    def prior(self, n: int, source: Source = None) -> Tensor:
        """Draw n initial states x_0, (n, *event)."""

    @abstractmethod
    def step(self, x: Tensor, k: int, condition: Condition) -> Step:
        """Evaluate the network at x_k, (B, *event); differentiable in x and in the weights.

        The only place where the network is called for sampling; guidance happens inside.
        """

    @abstractmethod
    def corrupt(self, clean: Tensor, t: Tensor, source: Source = None) -> tuple[Tensor, Tensor]:
        """Run the forward process to times t, (B,) in [0, 1] with 1 = pure noise.

        Returns:
            The noisy states (B, *event), and the network's training target at them.
        """

    @abstractmethod
    def predict(self, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's output at noisy states and times t, (B,); differentiable.

        It is what training compares with the target of `corrupt`.
        """

    def matching_error(self, output: Tensor, target: Tensor) -> Tensor:
        """The family's own pretraining error of each sample, (B,): mean over the event."""
        return (output - target).square().flatten(1).mean(1)

    def output_kl(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """KL of the laws that two outputs of `predict` stand for, (B,), summed over the event.

        Of states that are not tokens the outputs are means of unit Gaussians.
        """
        return 0.5 * (ours - theirs).square().flatten(1).sum(1)

    def relaxed(self, x: Tensor) -> Tensor:
        """The same states (B, *event) as floating-point numbers that have a gradient."""
        return x

    @contextmanager
    def remembering(self) -> Iterator[Spared]:
        """A context in which the weights stay as they are.

        A family may answer for a state that it has seen in there without evaluating its network.
        """
        yield Spared()

    def clean(self, noisy: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """The clean prediction E[x_K | noisy] that an output of `predict` stands for, (B, *event).

        Raises:
            TypeError: if the family has none that is a state.
        """
        raise TypeError(f"{type(self).__name__} predicts no clean state from its training output")

    @property
    def levels(self) -> Sequence[Level]:
        """How noisy x_0, ..., x_K are: x_k = alpha * clean + sigma * noise.

        Raises:
            TypeError: if the states are not of this form.
        """
        raise TypeError(f"the states of {type(self).__name__} are no mixture of data and noise")

    @abstractmethod
    def decode(self, x: Tensor) -> Samples:
        """Map clean states (B, *event) to what rewards see; differentiable."""

    @abstractmethod
    def latents(self, samples: Samples) -> Tensor:
        """The clean states (B, *event) of samples, without gradient: what `decode` undoes.

        Raises:
            TypeError: if the family does not produce samples of this kind.
        """

    @property
    def settings(self) -> Mapping[str, object]:
        """What one must know to sample as this object does: for reports and model cards."""
        return {"family": type(self).__name__, "num_steps": self.num_steps}

    def to(self, device: torch.device | str) -> None:
        """Move everything that sampling needs to a device."""
        self.network.to(device)

    def release_encoders(self) -> None:  # noqa: B027 - most families without prompts have none
        """Free the device from what only `encode` needs; prompts encoded so far stay usable."""

    def save_adapter(
        self, folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]
    ) -> None:
        """Write LoRA weights (PEFT's names and configuration) as the family's users load them."""
        save_tensors(folder / "adapter.safetensors", weights)

    def save_network(self, folder: Path) -> None:
        """Write the whole network as the family's users load it."""
        save_tensors(folder / "network.safetensors", self.network.state_dict())


@dataclass(frozen=True)
class Trajectory:
    """B paths of one model.

    Args:
        states: x_0, ..., x_K: (B, K + 1, *event).
        steps: the S steps that have a density.
        log_probs: log p(x_{k+1} | x_k) of those steps under the model that drew them, (B, S), nats.
        condition: of the B chains.
    """

    states: Tensor
    steps: tuple[int, ...]
    log_probs: Tensor
    condition: Condition

    def __len__(self) -> int:
        return len(self.states)

    def at(self, columns: Tensor) -> Trajectory:
        """The same paths with only some of their S steps to replay, in the order of columns."""
        steps = tuple(self.steps[i] for i in columns.tolist())
        return replace(self, steps=steps, log_probs=self.log_probs[:, columns])

    @property
    def clean(self) -> Tensor:
        """x_K, (B, *event)."""
        return self.states[:, -1]

    @property
    def dimensions(self) -> int:
        """The number of dimensions of one state, over which log-probabilities are summed."""
        return self.states[0, 0].numel()


def chunks(n: int, size: int) -> Iterator[Tensor]:
    """The row numbers 0 .. n - 1 in consecutive blocks of at most `size`."""
    return iter(torch.arange(n).split(size)) if n else iter(())


@torch.no_grad()
def rollout(
    diffusion: Diffusion,
    condition: Condition,
    prior: Source = None,
    noise: Source = None,
    rows: int = 64,
    noisy_steps: Collection[int] | None = None,
    until: int | None = None,
) -> Trajectory:
    """Sample one path per row of the condition.

    Args:
        diffusion: the model.
        condition: of B chains.
        prior: random numbers for x_0; equal generators give chains that share their start.
        noise: random numbers for the steps.
        rows: chains that go through the network at a time.
        noisy_steps: the steps that follow the model's own law; the others follow the ODE. All if
            not given.
        until: the number of steps; all if not given.
    """
    total = diffusion.num_steps if until is None else until
    noisy = set(range(total) if noisy_steps is None else noisy_steps)
    steps = tuple(k for k in diffusion.stochastic_steps if k in noisy and k < total)
    start = diffusion.prior(len(condition), prior)
    states, log_probs = [], []
    with diffusion.remembering():
        for block in chunks(len(condition), rows):
            path, log_p = [start[block.to(start.device)]], []
            for k in range(total):
                step = diffusion.step(path[-1], k, condition[block])
                law = step.transition if k in noisy else certain(diffusion, path[-1], k, step)
                path.append(law.sample(_rows_of(noise, block)))
                if k in steps:
                    log_p.append(law.log_prob(path[-1]))
            states.append(torch.stack(path, 1))
            log_probs.append(torch.stack(log_p, 1) if log_p else torch.zeros(len(block), 0))
    return Trajectory(torch.cat(states), steps, torch.cat(log_probs).to(start.device), condition)


@torch.no_grad()
def draw(
    diffusion: Diffusion,
    condition: Condition,
    prior: Source = None,
    noise: Source = None,
    rows: int = 64,
    until: int | None = None,
) -> Tensor:
    """The state x_K, or that at an earlier step, of one path per row: (B, *event).

    Arguments are those of `rollout`, which also keeps the way there.
    """
    start = diffusion.prior(len(condition), prior)
    ends = []
    with diffusion.remembering():
        for block in chunks(len(condition), rows):
            x, source = start[block.to(start.device)], _rows_of(noise, block)
            for k in range(diffusion.num_steps if until is None else until):
                x = diffusion.step(x, k, condition[block]).transition.sample(source)
            ends.append(x)
    return torch.cat(ends)


def certain(diffusion: Diffusion, x: Tensor, k: int, step: Step) -> Dirac:
    """The step of the probability-flow ODE from x_k, (B, *event), by DDIM's or Euler's rule.

    Raises:
        TypeError: if the states are no mixture of data and noise.
    """
    here, target = diffusion.levels[k], diffusion.levels[k + 1]
    noise = noise_in(x, step.clean, here)
    return Dirac(target.alpha * step.clean + target.sigma * noise)


def decode(diffusion: Diffusion, clean: Tensor, rows: int = 64) -> Samples:
    """Decode clean states in blocks of at most `rows`, without gradient."""
    with torch.no_grad():
        return concatenate([diffusion.decode(block) for block in clean.split(rows)])


def save_tensors(file: Path, weights: Mapping[str, Tensor]) -> None:
    """Write tensors by name as safetensors, in a folder that is created if need be."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file)


def _rows_of(source: Source, block: Tensor) -> Source:
    return [source[i] for i in block.tolist()] if isinstance(source, Sequence) else source
