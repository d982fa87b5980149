"""Discrete diffusion under the hook: states are tokens, and the clean prediction is a law.

Text has no mean that a reward could read, so that rewards on the way are those of samples of the
clean text, as FK steering does on MDLM: Singhal et al. (2025), arXiv:2501.06848. The samples are
part of what is filtered, hence the target is the same for any number of them. Their tokens are
drawn by inverting cumulative sums in float64, from the law that the scheduler itself draws from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Generator, Tensor

from diffreward.random import Source, rand
from diffreward.samples import Samples
from diffreward.schedules.levels import Level
from diffreward.steering.drop_in.belongings import loops
from diffreward.steering.drop_in.media import read_media
from diffreward.steering.drop_in.token_laws import Arguments, Family
from diffreward.steering.methods import FKSteering

Show = Callable[[Sequence[Tensor], Tensor], Samples]
"""Maps clean ids, a tensor (n, *event) in a list, and the particles that they are of to samples."""


NO_GRADIENT = (
    "this pipeline steps tokens, along which a reward has no gradient and to which no noise can be "
    "added back: use a method without guidance and returns, such as FKSteering"
)


class TokenRoute:
    """The calls of `step` as they come: a loop over blocks of tokens may end early, or go on.

    State k is step k mod S of block k // S, of S steps each. A block that is finished before its
    last step skips states; a score that was due at one of those is made up at the next. Later calls
    at the same step edit a finished block; they are left to the scheduler.

    Args:
        scheduler: after `set_timesteps`.
        family: how it steps.
        settings: of the method.
        num_states: K, the number of steps if no block ends early.
    """

    def __init__(
        self, scheduler: Any, family: Family, settings: FKSteering, num_states: int
    ) -> None:
        self._scheduler, self._of = scheduler, family
        self._scored = settings.scored_steps(num_states)
        self._block, self._furthest = -1, -1
        self.num_states, self.numbers = num_states, list[int]()

    def arrives(self, call: int, arguments: Arguments) -> bool:
        """Whether a call steps from a state that has not been there before."""
        steps, step = len(self._scheduler.timesteps), self._of.number(self._scheduler, arguments)
        self._block += step == 0
        k = self._block * steps + min(step, steps - 1)
        if k <= self._furthest:
            return False
        due = [scored for scored in self._scored if self._furthest < scored <= k]
        self._furthest = k
        self.numbers.append(due[-1] if due else k)
        return True

    def clean(self, call: int, arguments: Arguments) -> Tensor:
        """The law of the clean tokens, (B, *event, V) float32, summing to 1.

        It is that of the scheduler, with the call's temperature and its cuts; what has been decided
        has probability 1.
        """
        return self._of.clean(self._scheduler, arguments)

    def adds_noise(self, arguments: Arguments) -> bool:
        """Whether copies of a particle part."""
        return self._of.noise(self._scheduler, arguments)

    def level(self, visit: int) -> Level:
        """The share of the steps that are done as alpha, and of those to come as sigma."""
        done = self.numbers[visit] / self.num_states if visit < len(self.numbers) else 1.0
        return Level(done, 1 - done)

    def goes_back(self, visit: int) -> bool:
        """Never."""
        return False

    def law(self, visit: int, x: Tensor, clean: Tensor, strength: float) -> NoReturn:
        """There is no step of ours on tokens.

        Raises:
            ValueError: if particles should part and the scheduler is greedy.
        """
        raise ValueError(
            f"{type(self._scheduler).__name__} is greedy here, so that all particles of a prompt "
            "stay alike; call the pipeline with a temperature above 0 and "
            "sampling_method='multinomial'"
        )

    def pushed(self, call: int, arguments: dict[str, Any], clean: Tensor, push: Tensor) -> NoReturn:
        """There is no guidance of tokens.

        Raises:
            ValueError: always.
        """
        raise ValueError(NO_GRADIENT)


def draw_tokens(law: Tensor, draws: int, source: Source) -> Tensor:
    """Independent samples of the clean tokens of each row, (B, draws, *event) int64.

    Args:
        law: probabilities, (B, *event, V).
        draws: per row.
        source: of one uniform number per token.
    """
    steps = law.double().cumsum(-1)
    uniform = rand((len(law), draws, *law.shape[1:-1]), source, law.device).movedim(1, -1)
    # To the right of equal values: a token of probability zero is never drawn.
    ids = torch.searchsorted(steps, (uniform * steps[..., -1:]).contiguous(), right=True)
    return ids.movedim(-1, 1)


def look_ahead(rewards: Tensor, scale: float) -> Tensor:
    """What samples of one particle's future promise: (1 / scale) log mean exp(scale * reward).

    Args:
        rewards: (B, draws).
        scale: in nats per unit of reward; at 0 it is the mean.

    Returns:
        (B,), NaN where a reward is.
    """
    if rewards.shape[1] == 1 or scale == 0:
        return rewards.mean(1)
    log_mean = (scale * rewards.double()).logsumexp(1) - math.log(rewards.shape[1])
    return log_mean / scale


class DrawnTokens:
    """Shows samples of the clean tokens: `draws` in a row for each particle.

    Args:
        draws: per particle.
        sources: of random numbers, one per particle.
        show: what tokens stand for.
    """

    def __init__(self, draws: int, sources: Sequence[Generator], show: Show) -> None:
        self._draws, self._sources, self._show = draws, sources, show

    def __call__(self, states: Sequence[Tensor], rows: Tensor) -> Samples:
        """Samples n * draws, of the laws (n, *event, V) of these particles' clean tokens."""
        ids = draw_tokens(states[0], self._draws, [self._sources[i] for i in rows.tolist()])
        return self._show([ids.flatten(0, 1)], rows.repeat_interleave(self._draws))


class Writer:
    """Texts as the pipeline returns them, up to the block that is being written.

    Args:
        pipe: gives the pipeline whose loop is running.
    """

    def __init__(self, pipe: Callable[[], Any]) -> None:
        self._pipe = pipe

    def __call__(self, states: Sequence[Tensor], rows: Tensor) -> Samples:
        """The texts of clean ids (n, L) of these particles' blocks."""
        pipe, ids = self._pipe(), states[0]
        for names in loops(pipe):
            for kind in type(pipe).__mro__:
                if kind.__name__ in _WRITTEN and "prompt_length" in names:
                    before, returned = _WRITTEN[kind.__name__](names)
                    ids = torch.cat([before[rows.to(before.device)], ids], 1)[:, returned]
        return read_media(pipe, (ids,))


def _by_llada2(names: Arguments) -> tuple[Tensor, slice]:
    start = names["prompt_length"]
    return names["x"][:, : names["block_start_pos"]], slice(start, start + names["gen_length"])


def _by_diffusion_gemma(names: Arguments) -> tuple[Tensor, slice]:
    return names["cur_input_ids"], slice(names["prompt_length"], None)


_WRITTEN: Mapping[str, Callable[[Arguments], tuple[Tensor, slice]]] = {
    "LLaDA2Pipeline": _by_llada2,
    "DiffusionGemmaPipeline": _by_diffusion_gemma,
}
"""What stands before a pipeline's block, (B, n), and which part of all it returns in the end."""
