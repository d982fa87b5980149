"""Clean predictions as media: by the pipeline's own last lines.

A pipeline is called again, inside its own loop, as a copy whose networks answer at once and whose
scheduler has already arrived at the clean states. Unpacking, normalisation, autoencoder, vocoder
and processor are then the pipeline's own, and so is the gradient through them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Generator, Tensor, nn

from diffreward.samples import Samples
from diffreward.steering.drop_in.arguments import Expanded
from diffreward.steering.drop_in.belongings import own_guiders
from diffreward.steering.drop_in.denoiser import NETWORKS, Watched, replaced
from diffreward.steering.drop_in.hook import Hook, Step, hook
from diffreward.steering.drop_in.media import read_media

Decode = Callable[[Tensor], Samples]
"""Maps clean states (n, *event) to samples; differentiable where guidance is wanted."""


@dataclass
class Stepped(BaseOutput):  # type: ignore[misc]
    """What a step returns.

    Args:
        prev_sample: the next states, (B, *event).
        pred_original_sample: the clean predictions, (B, *event).
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


def answer(arguments: Mapping[str, Any], x: Tensor, clean: Tensor) -> Any:
    """Next states in the form in which the caller of `step` wants them."""
    if not arguments.get("return_dict", True):
        return x, clean
    return Stepped(prev_sample=x, pred_original_sample=clean)


class Arrived(Hook):
    """Answers every step with the same clean states; each deep copy with those of the next medium.

    Args:
        states: one per scheduler of the pipeline, each (n, *event).
    """

    def __init__(self, states: Sequence[Tensor]) -> None:
        self._states, self._copies = list(states), 0

    def __call__(self, scheduler: Any, step: Step, arguments: dict[str, Any]) -> Any:
        # Of a second medium nothing is known before its first step.
        x = self._states[0] if self._states else arguments["sample"]
        x = x.to(arguments["sample"].dtype)
        return answer(arguments, x, x)

    def __deepcopy__(self, memo: dict[int, Any]) -> Arrived:
        self._copies += 1
        return Arrived(self._states[self._copies :])


class Decoder:
    """Media of some rows' clean states.

    Args:
        pipe: the pipeline, unchanged.
        call: of all rows.
        watched: its networks, which have been called.
        shrink: divides height and width of the states before they are decoded, for speed.
        autoencoder: used in place of the pipeline's own: a tiny one, for speed.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        call: Expanded,
        watched: Mapping[str, Watched],
        shrink: int = 1,
        autoencoder: nn.Module | None = None,
    ) -> None:
        self._pipe, self._call, self._watched = pipe, call, watched
        self._shrink, self._autoencoder = shrink, autoencoder
        self._encoded: dict[int, Any] = {}

    def __call__(self, states: Sequence[Tensor], rows: Tensor) -> Samples:
        """Decode the clean states of these rows, one tensor (n, *event) per scheduler.

        Raises:
            ValueError: if the pipeline's networks are not known, so that they would run again, or
                the states cannot be made smaller.
        """
        if not self._watched:
            raise ValueError(
                f"{type(self._pipe).__name__} has no network under any of the names {NETWORKS}; to "
                "judge its states on the way, pass decoder="
            )
        if self._shrink > 1:
            states = [self._smaller(states[0]), *states[1:]]
        inner = self._copy(len(rows))
        scheduler = copy.deepcopy(self._pipe.scheduler)
        hook(scheduler, Arrived(states))
        vars(inner)["scheduler"] = scheduler
        keywords = self._call.take(rows) | {"return_dict": True}
        known = inspect.signature(type(self._pipe).__call__).parameters
        if "output_type" in known:
            keywords["output_type"] = "pt"
        if "generator" in known:
            keywords["generator"] = Generator().manual_seed(0)
        for name in ("callback_on_step_end", "callback", "callback_on_step_end_tensor_inputs"):
            keywords.pop(name, None)
        devices = [states[0].device] if states[0].is_cuda else []
        with torch.random.fork_rng(devices):
            return read_media(self._pipe, pipeline_call(self._pipe)(inner, **keywords))

    def _copy(self, rows: int) -> DiffusionPipeline:
        inner = copy.copy(self._pipe)
        for name, network in self._watched.items():
            module = replaced(vars(self._pipe)[name], self._blank(network, rows))
            vars(inner)[name] = module
        if self._autoencoder is not None:
            vars(inner)["vae"] = self._autoencoder
        # Models that were moved aside stay there until the steered call itself has ended.
        vars(inner)["maybe_free_model_hooks"] = lambda: None
        vars(inner)["_progress_bar_config"] = {"disable": True}
        own_guiders(inner)
        if "encode_prompt" in dir(type(inner)):
            vars(inner)["encode_prompt"] = self._encode_once(inner, rows)
        return inner

    def _blank(self, network: Watched, rows: int) -> Callable[..., Any]:
        # One of several experts may not have been called so far; they look alike from outside.
        seen = network if network.called else next(w for w in self._watched.values() if w.called)
        return lambda *args, **kwargs: seen.blank(rows, args, kwargs)

    def _encode_once(self, inner: DiffusionPipeline, rows: int) -> Callable[..., Any]:
        """Embeddings do not matter here, since no network looks at them; their number does."""
        encode = inner.encode_prompt

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            if rows not in self._encoded:
                self._encoded[rows] = encode(*args, **kwargs)
            return self._encoded[rows]

        return encode_prompt

    def _smaller(self, clean: Tensor) -> Tensor:
        if clean.ndim != 4 or self._autoencoder_is_missing():
            raise ValueError(
                f"got preview_shrink {self._shrink} and states of shape {tuple(clean.shape)}; only "
                "states (B, C, H, W) of a pipeline with a vae can be decoded smaller"
            )
        return F.interpolate(clean, scale_factor=1 / self._shrink, mode="area")

    def _autoencoder_is_missing(self) -> bool:
        return self._autoencoder is None and vars(self._pipe).get("vae") is None


def pipeline_call(pipe: DiffusionPipeline) -> Callable[..., Any]:
    """The pipeline's `__call__`, with gradients where they are enabled.

    Pipelines forbid gradients by a decorator, which is passed by if gradients are enabled now.
    """
    call = type(pipe).__call__
    return getattr(call, "__wrapped__", call) if torch.is_grad_enabled() else call
