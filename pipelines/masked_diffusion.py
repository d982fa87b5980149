"""Masked diffusion of sequences: a `MaskedDiffusionPipeline` as a Markov chain on tokens.

Source: Sahoo et al. (2024), NeurIPS, arXiv:2406.07524 (MDLM). The chain is their ancestral sampler
on a grid of times; steps at which nothing is revealed cost no evaluation while a sampler runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreward.diffusion import Condition, Diffusion, Spared, Step
from diffreward.loading import check_source, load_pipeline
from diffreward.pipeline_diffusion import save_peft
from diffreward.random import Source
from diffreward.samples import Samples, Tokens, tokens
from diffreward.sequences.memory import Memory
from diffreward.sequences.samplers import sharpened
from diffreward.sequences.subs import subs_log_probs
from diffreward.transitions import Categorical
from diffreward.unmasking import Relaxation, Unmasking

_IMPOSSIBLE = -1e6
"""The log-probability of what a symbol that is there is not, in the relaxation "released"."""


class MaskedDiffusion(Diffusion):
    """Sequences of symbols, revealed one after the other; prompts are templates to fill in.

    States are ids, (B, L) int64 with V for the mask, or on the way of a gradient their relaxation,
    (B, L, V + 1). A prompt is what the pipeline takes for one: "" leaves all open.

    Args:
        pipeline: a folder, a hub id, or the pipeline itself.
        num_steps: K; more steps reveal fewer positions at a time, whose dependence is then kept.
        temperature: of the symbols' law; below 1 it is sharper than the model's. That of the
            pipeline's scheduler if not given.
        gumbel_temperature: of the relaxation of a draw.
        relaxation: how a gradient goes through a draw, see `diffreward.unmasking.Unmasking`.
        prediction: what stands for the clean sequence on the way, at hard states: the likeliest
            symbols ("mode", as SVDD does), or the weights of all ("mean"), for rewards that take
            them. At relaxed states it is the mean.
        final_time: where the grid of times ends. Only at 0 is all revealed; the authors of DRAKES
            fine-tune with 1e-5.

    Raises:
        ValueError: if a number is out of its range.
        FileNotFoundError: if the source can only be meant as a folder, and is none.
    """

    def __init__(
        self,
        pipeline: str | Any,
        num_steps: int = 128,
        temperature: float | None = None,
        gumbel_temperature: float = 1.0,
        relaxation: Relaxation = "straight_through",
        prediction: Literal["mode", "mean"] = "mode",
        final_time: float = 0.0,
    ) -> None:
        least = gumbel_temperature if temperature is None else min(temperature, gumbel_temperature)
        if num_steps < 1 or least <= 0 or not 0 <= final_time < 1:
            raise ValueError(
                "num_steps is at least 1, temperatures are above 0 and final_time is in [0, 1), "
                f"got {num_steps}, {temperature}, {gumbel_temperature} and {final_time}"
            )
        if isinstance(pipeline, str):
            check_source(pipeline, "model_index.json")
        self._source, self._steps, self._temperature = pipeline, num_steps, temperature
        self._gumbel, self._final = gumbel_temperature, final_time
        self._relaxation: Relaxation = relaxation
        self._by_mode = prediction == "mode"
        self._memory: Memory | None = None

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline, loaded when first needed."""
        if not isinstance(self._source, str):
            return self._source
        return load_pipeline(self._source)

    @property
    def num_steps(self) -> int:
        return self._steps

    @property
    def stochastic_steps(self) -> Sequence[int]:
        return range(self._steps)

    @property
    def network(self) -> nn.Module:
        network: nn.Module = self.pipeline.denoiser
        return network

    @network.setter
    def network(self, module: nn.Module) -> None:
        self.pipeline.denoiser = module

    @cached_property
    def alphabet(self) -> str:
        """The V symbols."""
        return str(self.pipeline.config.alphabet)

    @cached_property
    def times(self) -> Tensor:
        """Of x_0, ..., x_K, (K + 1,) from 1 down."""
        return torch.linspace(1, self._final, self._steps + 1, dtype=torch.float64)

    @cached_property
    def masked(self) -> Tensor:
        """The probability that a position of x_0, ..., x_K is masked, (K + 1,) float64."""
        share: Tensor = self.pipeline.scheduler.masked_share(self.times)
        return share

    @property
    def settings(self) -> Mapping[str, object]:
        pipe = self.pipeline
        base = self._source if isinstance(self._source, str) else pipe.config["_name_or_path"]
        return {
            **super().settings,
            "base_model": base,
            "loader": f"diffreward.{type(pipe).__name__}",
            "network": "denoiser",
            "temperature": self._temperature or pipe.scheduler.config.temperature,
            "relaxation": self._relaxation,
            "usage": f"sequences = pipe(num_inference_steps={self._steps}).sequences",
            "task": "other",
        }

    def encode(self, prompts: Sequence[str]) -> Condition:
        return Condition(tuple(prompts), self.pipeline.encode_prompt(list(prompts)))

    def prior(self, n: int, source: Source = None) -> Tensor:
        shape = n, int(self.pipeline.config.length)
        device = next(self.network.parameters()).device
        return torch.full(shape, len(self.alphabet), device=device)

    def step(self, x: Tensor, k: int, condition: Condition) -> Step:
        state = self._filled_in(x, condition)
        log_p = self._log_law(state, float(self.times[k]), condition)
        stays = float(self.masked[k + 1] / self.masked[k])
        hidden = log_p.new_tensor([1 - stays, stays]).log()
        logits = torch.cat([log_p + hidden[0], hidden[1].expand_as(log_p[..., :1])], -1)
        law = Unmasking(state, logits, self._gumbel, self._relaxation)
        if state.ndim == 2 and self._by_mode:
            return Step(law, torch.where(state == len(self.alphabet), log_p.argmax(-1), state))
        weights = self.relaxed(state)
        return Step(law, weights[..., :-1] + weights[..., -1:] * log_p.exp())

    def corrupt(self, clean: Tensor, t: Tensor, source: Source = None) -> tuple[Tensor, Tensor]:
        """Mask each position with the probability of its time.

        Returns:
            The ids, and the symbols that were masked as one-hot rows times the weight of their time
            in the evidence lower bound, (B, L, V).
        """
        t = t.to(clean.device)
        scheduler, size = self.pipeline.scheduler, len(self.alphabet)
        noisy = scheduler.add_noise(clean, source, t)
        weights = scheduler.loss_weight(t)[:, None] * (noisy == size)
        return noisy, (F.one_hot(clean, size) * weights[..., None]).float()

    def predict(self, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Log-probabilities of the clean symbols, (B, L, V): 0 and -inf where one is there."""
        state = self._filled_in(noisy, condition)
        return subs_log_probs(self._evaluated(state, t.to(state.device), condition.tensors), state)

    def matching_error(self, output: Tensor, target: Tensor) -> Tensor:
        """Nats per position; at uniform t the mean is minus the evidence lower bound."""
        return -(target * output.masked_fill(target == 0, 0)).sum(-1).mean(-1)

    def output_kl(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return Categorical(ours).divergence(Categorical(theirs)).sum(-1).to(ours.dtype)

    def relaxed(self, x: Tensor) -> Tensor:
        return F.one_hot(x, len(self.alphabet) + 1).float() if x.ndim == 2 else x

    def decode(self, x: Tensor) -> Samples:
        """Tokens.

        Raises:
            ValueError: if a position is still masked.
        """
        size = len(self.alphabet)
        if x.ndim == 2:
            if bool((x == size).any()):
                raise ValueError("a masked position has no symbol; decode clean states")
            return Tokens(x, self.alphabet)
        if x.shape[-1] == size:
            return Tokens(x, self.alphabet)
        # The reward sees a sequence, and its gradient reaches the weights.
        soft = x[..., :size]
        hard = F.one_hot(soft.argmax(-1), size).to(soft)
        return Tokens(hard + soft - soft.detach(), self.alphabet)

    def latents(self, samples: Samples) -> Tensor:
        ids = tokens(samples)
        return ids.argmax(-1) if ids.ndim == 3 else ids

    def to(self, device: torch.device | str) -> None:
        self.pipeline.to(device)

    def save_adapter(
        self, folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]
    ) -> None:
        """As PEFT loads them."""
        save_peft(folder, weights, config)

    def save_network(self, folder: Path) -> None:
        """Write the whole pipeline: it is small, and users load it at once."""
        self.pipeline.save_pretrained(folder)

    @contextmanager
    def remembering(self) -> Iterator[Spared]:
        """See `Diffusion.remembering`; a network that is told the time remembers nothing."""
        outer, spared = self._memory, Spared()
        if not self.pipeline.denoiser.config.get("time_conditioning", False):
            self._memory = Memory(spared)
        try:
            yield spared
        finally:
            self._memory = outer

    def _filled_in(self, x: Tensor, condition: Condition) -> Tensor:
        """The states with what their templates fix."""
        template = condition.tensors["template"].to(x.device)
        fixed = template != len(self.alphabet)
        if x.ndim == 2:
            return torch.where(fixed, template, x)
        return torch.where(fixed[..., None], self.relaxed(template).to(x), x)

    def _log_law(self, state: Tensor, time: float, condition: Condition) -> Tensor:
        """Log-probabilities of symbols where a mask is, (B, L, V); anything finite elsewhere."""
        times = torch.full((len(state),), time, device=state.device)
        if state.ndim == 2 and self._memory is not None and not torch.is_grad_enabled():
            evaluate = self._at(state, times, condition)
            return self._memory.recall(state, condition.prompts, evaluate)
        log_p = self._evaluated(state, times, condition.tensors)
        if state.ndim == 2 or self._relaxation != "released":
            return log_p
        largest = state.argmax(-1)
        shown = F.one_hot(largest, len(self.alphabet) + 1)[..., :-1]
        certain = torch.where(shown == 1, 0.0, _IMPOSSIBLE)
        return torch.where((largest == len(self.alphabet))[..., None], log_p, certain)

    def _at(self, state: Tensor, times: Tensor, condition: Condition) -> Callable[[Tensor], Tensor]:
        def evaluate(rows: Tensor) -> Tensor:
            chosen = condition[rows]
            return self._evaluated(state[rows], times[rows], chosen.tensors)

        return evaluate

    def _evaluated(self, state: Tensor, times: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        given = {name: tensor for name, tensor in tensors.items() if name != "template"}
        logits: Tensor = self.network(state, times, **given).logits
        settings = self.pipeline.scheduler.config
        temperature = self._temperature or settings.temperature
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return sharpened(precise, temperature, settings.nucleus)
