"""Sequences by masked diffusion, as a pipeline of diffusers: free, infilled or around a motif.

A prompt is a template: the symbols that are given, and `_` where the model is to fill in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor

import diffreward.sequences.denoisers  # noqa: F401 - diffusers loads only what has been imported
from diffreward.alphabets import DNA, ids_of
from diffreward.random import Source
from diffreward.samples import Tokens
from diffreward.sequences.scheduler import MaskedDiffusionScheduler

FREE = "_"
"""Stands in a template where any symbol may be."""


@dataclass
class SequencePipelineOutput(BaseOutput):  # type: ignore[misc]
    """What the pipeline returns.

    Args:
        sequences: B strings, or ids (B, L) int64.
    """

    sequences: list[str] | Tensor


class MaskedDiffusionPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Fills in masked positions of sequences, step by step.

    What it has saved is loaded by this class, by `diffreward.loading.load_pipeline` or, as far as
    diffusers knows, by `DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline",
    trust_remote_code=True)`.

    Args:
        denoiser: predicts clean symbols; see `diffreward.sequences.denoisers`.
        scheduler: masks and reveals. For another sampler, replace it: `pipe.scheduler =
            MaskedDiffusionScheduler.from_config(pipe.scheduler.config, sampler="first_hitting")`.
        alphabet: the V symbols, in the order of the ids.
        length: L, of the sequences of an empty prompt.

    Raises:
        ValueError: if the parts have alphabets of several sizes.
    """

    model_cpu_offload_seq = "denoiser"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        denoiser: ModelMixin,
        scheduler: MaskedDiffusionScheduler,
        alphabet: str = DNA,
        length: int = 200,
    ) -> None:
        super().__init__()
        sizes = len(alphabet), denoiser.config.vocab_size, scheduler.config.vocab_size
        if len(set(sizes)) > 1 or FREE in alphabet:
            raise ValueError(
                f"alphabet {alphabet!r} has {sizes[0]} symbols, the denoiser has {sizes[1]} and "
                f"the scheduler {sizes[2]}; they agree, and {FREE!r} is no symbol"
            )
        self.register_modules(denoiser=denoiser, scheduler=scheduler)
        self.register_to_config(alphabet=alphabet, length=length)
        self.alphabet = alphabet

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the loop needs of each prompt, by name, each (B, ...).

        Always there is `template`, (B, L) int64: ids where symbols are given, V where they are
        free. Everything else is an argument of the denoiser.

        Args:
            prompts: templates, of one length; an empty one has the pipeline's length.

        Raises:
            ValueError: if lengths differ, or a symbol is unknown.
        """
        templates = [prompt or FREE * self.config.length for prompt in prompts]
        lengths = sorted({len(template) for template in templates})
        if len(lengths) != 1:
            raise ValueError(f"the templates of one call have one length, got {lengths}")
        ids = ids_of(templates, self.alphabet + FREE)
        return {"template": torch.tensor(ids, device=self._execution_device)}

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] = "",
        num_inference_steps: int = 128,
        num_sequences_per_prompt: int = 1,
        generator: Source = None,
        latents: Tensor | None = None,
        output_type: str = "str",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
        | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> SequencePipelineOutput | tuple[list[str] | Tensor]:
        """Sample sequences.

        Args:
            prompt: one template or several: symbols that stay, `_` where they are free. Empty: all
                are free.
            num_inference_steps: of the scheduler.
            num_sequences_per_prompt: how many of each, one after the other.
            generator: one for all sequences, or one for each: then what a sequence becomes does
                not depend on the others.
            latents: states to start from, (B, L) int64 with V for masks; all masked by default.
            output_type: "str", or "pt" and "latent" for ids.
            return_dict: whether an output or a tuple comes back.
            callback_on_step_end: called with the pipeline, the number of the step, its time, and
                the tensors that are asked for; what it returns replaces them.
            callback_on_step_end_tensor_inputs: "latents" or nothing.

        Raises:
            ValueError: if templates, latents or generators do not fit, or the sampler has no times
                to tell a denoiser that is conditioned on them.
        """
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown or output_type not in ("str", "pt", "latent"):
            raise ValueError(
                "output_type is 'str', 'pt' or 'latent' and callbacks are given 'latents', got "
                f"{output_type!r} and {list(callback_on_step_end_tensor_inputs)}"
            )
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        encoded = self.encode_prompt([p for p in prompts for _ in range(num_sequences_per_prompt)])
        template = encoded["template"]
        evaluations = self._evaluations(encoded)
        self.scheduler.set_timesteps(num_inference_steps, device=template.device)
        self._num_timesteps = len(self.scheduler.timesteps)
        latents = self._start(template, latents)
        with self.progress_bar(total=num_inference_steps) as bar:
            for i, t in enumerate(self.scheduler.timesteps):
                logits = evaluations(latents, t)
                latents = self.scheduler.step(logits, t, latents, generator, return_dict=False)[0]
                # Remasking knows nothing of what is fixed.
                latents = torch.where(template == self.scheduler.mask, latents, template)
                if callback_on_step_end is not None:
                    tensors = {name: latents for name in callback_on_step_end_tensor_inputs}
                    latents = callback_on_step_end(self, i, t, tensors).get("latents", latents)
                bar.update()
        self.maybe_free_model_hooks()
        sequences = Tokens(latents, self.alphabet).strings() if output_type == "str" else latents
        return SequencePipelineOutput(sequences=sequences) if return_dict else (sequences,)

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call."""
        return self._num_timesteps

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        # How diffusers finds the class of a pipeline that is not its own.
        own = type(self)
        (folder / "pipeline.py").write_text(
            f'"""The class of this pipeline."""\n\nfrom {own.__module__} import {own.__name__}\n'
        )
        super().save_pretrained(str(folder), *args, **kwargs)

    def _evaluations(self, encoded: Mapping[str, Tensor]) -> Evaluations:
        sees_time = bool(self.denoiser.config.get("time_conditioning", False))
        if sees_time and not self.scheduler.sampler.follows_noise:
            raise ValueError(
                f"with the sampler {self.scheduler.config.sampler!r} states have no time, which "
                "this denoiser is conditioned on; use 'ancestral'"
            )
        condition = {name: value for name, value in encoded.items() if name != "template"}
        return Evaluations(self.denoiser, condition, self.scheduler.mask, sees_time)

    def _start(self, template: Tensor, latents: Tensor | None) -> Tensor:
        if latents is None:
            return template.clone()
        if latents.shape != template.shape:
            raise ValueError(f"latents are {tuple(template.shape)}, got {tuple(latents.shape)}")
        return torch.where(template == self.scheduler.mask, latents.to(template.device), template)


class Evaluations:
    """A denoiser's logits, evaluated only for the rows of a batch where they may be others.

    Those are rows that have changed since and are still masked somewhere. Between two reveals a
    sequence costs nothing: at 128 steps, two thirds of the evaluations of sequences of length 50.

    Args:
        denoiser: the network.
        condition: its other arguments, each (B, ...).
        mask: number of the mask.
        sees_time: whether the logits change with time alone.
    """

    def __init__(
        self, denoiser: Any, condition: Mapping[str, Tensor], mask: int, sees_time: bool
    ) -> None:
        self._denoiser, self._condition = denoiser, condition
        self._mask, self._sees_time = mask, sees_time
        self._ids: Tensor | None = None
        self._logits: Tensor | None = None

    def __call__(self, ids: Tensor, t: Tensor) -> Tensor:
        """Logits (B, L, V) at ids (B, L); of rows without a mask they mean nothing."""
        if self._ids is None or self._logits is None:
            self._ids = torch.full_like(ids, -1)
            self._logits = torch.zeros(*ids.shape, self._mask, device=ids.device)
        needed = (ids == self._mask).any(1)
        if not self._sees_time:
            needed &= (ids != self._ids).any(1)
        rows = needed.nonzero().squeeze(1)
        if len(rows):
            condition = {name: value[rows] for name, value in self._condition.items()}
            found = self._denoiser(ids[rows], timestep=t, **condition).logits
            # New tensors: the caller may still hold the last ones.
            self._logits = self._logits.index_copy(0, rows, found.to(self._logits))
            self._ids = self._ids.index_copy(0, rows, ids[rows])
        return self._logits
