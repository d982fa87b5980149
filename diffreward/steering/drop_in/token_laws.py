"""What the schedulers of discrete tokens draw clean tokens from, and whether they draw at all.

Source: the `step` of each class in diffusers 0.42, and of `MaskedDiffusionScheduler` here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Arguments = Mapping[str, Any]


# What each scheduler draws clean tokens from.


def _drawn(logits: Tensor, temperature: float) -> Tensor:
    return (
        _kept(logits.argmax(-1), logits) if temperature == 0 else (logits / temperature).softmax(-1)
    )


def _kept(ids: Tensor, logits: Tensor) -> Tensor:
    """All probability on these tokens."""
    return torch.zeros_like(logits).scatter_(-1, ids[..., None], 1.0)


def _where(open_: Tensor, law: Tensor, ids: Tensor) -> Tensor:
    """The law at open positions, and what is there already at all others."""
    # A mask may have a number beyond those of the logits.
    return torch.where(open_[..., None], law, _kept(ids.masked_fill(open_, 0), law))


def _block_refinement(scheduler: Any, arguments: Arguments) -> Tensor:
    logits, sample = arguments["model_output"].float(), arguments["sample"]
    temperature = arguments["temperature"] if _refines_by_chance(scheduler, arguments) else 0.0
    if temperature != 0:
        logits = scheduler._top_k_filtering(logits / temperature, arguments["top_k"])
        logits, temperature = scheduler._top_p_filtering(logits, arguments["top_p"]), 1.0
    law = _drawn(logits, temperature)
    if arguments["mask_token_id"] is not None:
        return _where(sample == arguments["mask_token_id"], law, sample)
    # The scheduler forgets at the start of a block what it committed in the last.
    committed = scheduler._committed
    if committed is None or int(arguments["timestep"]) == 0:
        return law
    return _where(~committed, law, sample)


def _discrete_ddim(scheduler: Any, arguments: Arguments) -> Tensor:
    return _drawn(arguments["model_output"].float(), arguments["temperature"])


def _entropy_bound(scheduler: Any, arguments: Arguments) -> Tensor:
    hottest, coldest = scheduler.config.t_max, scheduler.config.t_min
    gone = int(arguments["timestep"]) / scheduler.num_inference_steps
    return _drawn(arguments["model_output"].float(), hottest + (coldest - hottest) * gone)


def _amused(scheduler: Any, arguments: Arguments) -> Tensor:
    logits, sample = arguments["model_output"].float(), arguments["sample"]
    law = (logits.movedim(1, -1) if logits.ndim == 4 else logits).softmax(-1)
    return _where(sample == scheduler.config.mask_token_id, law, sample)


def _vq_diffusion(scheduler: Any, arguments: Arguments) -> Tensor:
    law: Tensor = arguments["model_output"].float().movedim(1, -1).softmax(-1)
    return law


def _masked_diffusion(scheduler: Any, arguments: Arguments) -> Tensor:
    law: Tensor = scheduler.clean_log_probs(arguments["model_output"], arguments["sample"])
    return law.float().exp()


# Whether the scheduler draws random numbers of its own.


def _always(scheduler: Any, arguments: Arguments) -> bool:
    return True


def _refines_by_chance(scheduler: Any, arguments: Arguments) -> bool:
    by_chance = arguments["sampling_method"] in ("auto", "multinomial")
    return by_chance and arguments["temperature"] != 0


def _refines_or_renoises(scheduler: Any, arguments: Arguments) -> bool:
    return arguments["mask_token_id"] is None or _refines_by_chance(scheduler, arguments)


# How many steps come before this one.


def _counting_up(scheduler: Any, arguments: Arguments) -> int:
    return int(arguments["timestep"])


def _counting_down(scheduler: Any, arguments: Arguments) -> int:
    return len(scheduler.timesteps) - 1 - int(arguments["timestep"])


def _by_time(scheduler: Any, arguments: Arguments) -> int:
    number: int = scheduler.index_for_timestep(arguments["timestep"])
    return number


@dataclass(frozen=True)
class Family:
    """How a class of schedulers steps tokens.

    Args:
        clean: the law of clean tokens, (B, *event, V) float32, given the arguments of a step.
        noise: whether the step draws random numbers of its own.
        number: of the step among those of a block, from 0.
        text: whether the tokens are what the pipeline returns, such as a text; others stand for
            patches of an image.
    """

    clean: Callable[[Any, Arguments], Tensor]
    noise: Callable[[Any, Arguments], bool] = _always
    number: Callable[[Any, Arguments], int] = _counting_up
    text: bool = True


_FAMILIES = {
    "BlockRefinementScheduler": Family(_block_refinement, _refines_or_renoises),
    "DiscreteDDIMScheduler": Family(_discrete_ddim),
    "EntropyBoundScheduler": Family(_entropy_bound),
    "AmusedScheduler": Family(_amused, number=_counting_down, text=False),
    "VQDiffusionScheduler": Family(_vq_diffusion, number=_counting_down, text=False),
    "MaskedDiffusionScheduler": Family(_masked_diffusion, number=_by_time),
}


def family_of(scheduler: Any) -> Family | None:
    """How this scheduler steps tokens; None if it does not, as far as we know."""
    names = [base.__name__ for base in type(scheduler).__mro__]
    return next((_FAMILIES[name] for name in names if name in _FAMILIES), None)
