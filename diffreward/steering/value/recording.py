"""States that a pipeline passes on its way, with the rewards in which they end.

The pipeline is steered by nothing: particles of equal weights are never selected. But they move as
those of a method that selects do, so that what becomes of a state has the same law.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from diffreward.random import rand, stream
from diffreward.reward import RewardFunction, score
from diffreward.samples import Samples
from diffreward.steering.drop_in import steer
from diffreward.steering.drop_in.decoding import Decode
from diffreward.steering.drop_in.session import State
from diffreward.steering.methods import FKSteering

Progress = Callable[[str, int, int], None]
"""Is told what is being done ("sampling" or "fitting"), how much of it is done, and all of it."""

STATES = 8
"""That are kept of a sample: its others would tell much the same and take their share of memory."""


@dataclass(frozen=True)
class RecordedStates:
    """States on the way of S samples, n in all, and the rewards at their ends; all on the CPU.

    Args:
        x: states, (n, *event).
        clean: their clean predictions, of the first medium if there are several, (n, *event).
        noise_to_signal: sigma / alpha of the states, (n,) float32; infinity is pure noise.
        sample: the sample that each became, (n,) int64.
        rewards: of the samples, (S,) float32; NaN where the reward failed.
        prompts: of the samples, S.
    """

    x: Tensor
    clean: Tensor
    noise_to_signal: Tensor
    sample: Tensor
    rewards: Tensor
    prompts: tuple[str, ...]


def record_states(
    pipe: DiffusionPipeline,
    reward: RewardFunction,
    prompts: Sequence[str],
    *,
    calls: int = 64,
    batch: int = 16,
    eta: float = 1.0,
    decoder: Decode | None = None,
    seed: int = 0,
    call: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> RecordedStates:
    """Call a pipeline several times; see `diffreward.steering.value.train_value`.

    Raises:
        ValueError: if there are no prompts or calls, or calls of one sample or of several outputs,
            or the pipeline cannot be steered.
    """
    if not prompts or calls < 1 or batch < 2:
        raise ValueError(
            f"got {len(prompts)} prompts, {calls} calls and a batch of {batch}; expected at least "
            "1, 1 and 2"
        )
    method = FKSteering(batch, scale=0.0, ess_threshold=1.0, interval=1, start=0.0, stop=1.0)
    recorders = []
    for number in range(calls):
        recorder = _Recorder(reward, rand((1,), stream(seed, "states", number)).item())
        judge = recorder.value
        steered = steer(
            pipe, recorder.reward, method, eta=eta, value=judge, decoder=decoder, rows=batch
        )
        asked = _asked(pipe, prompts[number % len(prompts)])
        steered(**asked, generator=stream(seed, "samples", number), **(call or {}))
        if (systems := len(steered.last.rewards)) > 1:
            raise ValueError(
                f"got a call of {systems} outputs; it has one, of which batch are drawn"
            )
        recorders.append(recorder)
        if progress is not None:
            progress("sampling", number + 1, calls)
    return _together(recorders, batch)


class _Recorder:
    """Value and reward of one call: keeps what it is shown, and has no preference.

    Args:
        reward: the real one.
        offset: in [0, 1), which of the states are kept.
    """

    def __init__(self, reward: RewardFunction, offset: float) -> None:
        self._reward, self._offset = reward, offset
        self.states: list[State] = []
        self.rewards = torch.empty(0)
        self.prompts: tuple[str, ...] = ()

    def value(self, state: State, prompts: Sequence[str]) -> Tensor:
        # Systematic sampling: every state has the same chance.
        kept = {int((i + self._offset) / STATES * state.num_states) for i in range(STATES)}
        if state.number in kept:
            x, clean = state.x.cpu(), state.clean[0].to("cpu", state.x.dtype)
            self.states.append(replace(state, x=x, clean=(clean,)))
        return torch.zeros(len(prompts))

    def reward(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        self.rewards = score(self._reward, samples, prompts).detach().cpu()
        self.prompts = tuple(prompts)
        # A sample without a reward must not end the call.
        return torch.zeros(len(prompts))


def _together(recorders: Sequence[_Recorder], batch: int) -> RecordedStates:
    states = [state for recorder in recorders for state in recorder.states]
    samples = torch.arange(len(recorders) * batch).split(batch)
    rows = [s for s, r in zip(samples, recorders, strict=True) for _ in r.states]
    return RecordedStates(
        torch.cat([state.x for state in states]),
        torch.cat([state.clean[0] for state in states]),
        torch.tensor([state.noise_to_signal for state in states]).repeat_interleave(batch),
        torch.cat(rows),
        torch.cat([recorder.rewards for recorder in recorders]),
        tuple(prompt for recorder in recorders for prompt in recorder.prompts),
    )


def _asked(pipe: DiffusionPipeline, prompt: str) -> dict[str, Any]:
    """The argument that tells a pipeline what to draw, if it takes one."""
    taken = inspect.signature(type(pipe).__call__).parameters
    if "prompt" in taken:
        return {"prompt": prompt}
    return {"class_labels": [int(prompt)]} if "class_labels" in taken else {}
