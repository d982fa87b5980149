"""Masked diffusion in time: how many positions are masked when, and how a step reveals them.

Sources: Sahoo et al. (2024), NeurIPS, arXiv:2406.07524 (MDLM: forward process, weights of the
loss, ancestral steps); the samplers' own are named in `diffreward.sequences.samplers`. Time runs
from 1, where all is masked, to 0; the papers' alpha_t is 1 - m(t) here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from diffreward.random import Source, rand
from diffreward.sequences.noise import NOISES
from diffreward.sequences.remasking import Move
from diffreward.sequences.samplers import SAMPLERS, Sampler, sharpened
from diffreward.sequences.subs import subs_log_probs


@dataclass
class MaskedDiffusionSchedulerOutput(BaseOutput):  # type: ignore[misc]
    """What a step returns.

    Args:
        prev_sample: the next states, (B, L) int64.
        pred_original_sample: the likeliest clean symbol at each position, (B, L) int64.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class MaskedDiffusionScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Masks positions independently, and reveals them again in steps.

    Samplers, by name:

    - "ancestral": each masked position is revealed by itself with probability 1 - m(s) / m(t). The
      law of T steps differs from that of infinitely many by a KL of order 1 / T^2.
    - "first_hitting": one position at a time, chosen evenly, which is the law of infinitely many
      ancestral steps where the denoiser does not look at the time. It takes as many steps as there
      are masked positions; of fewer, each reveals several, and more are idle.
    - "remdm_cap", "remdm_rescale", "remdm_loop": ancestral steps that also mask some positions
      again, so that errors of the denoiser can be mended; m(t) is the same. Positions that are
      masked together late are revealed together, so that the error of the law falls with the root
      of T only; with "remdm_loop", it stays. "remdm_conf" masks where a symbol was unlikely, and
      more than m(t).
    - "confidence": reveals where the drawn symbol is likeliest. It CHANGES THE LAW, so it has no
      `step_log_probs` and is no proposal for importance weights.

    Args:
        vocab_size: V, clean symbols; the mask is symbol V.
        noise: "log_linear", m(t) = (1 - epsilon) t, or "cosine", (1 - epsilon) sin(pi t / 2).
        epsilon: share that is never masked; MDLM trains with 1e-3.
        sampler: as above.
        eta: the most that ReMDM masks again of what is shown, in [0, 1]; others do not look at it.
        temperature: of the law of clean symbols, above 0; any but 1 changes the law.
        nucleus: probability that the likeliest symbols, to which each position's law is cut, have
            together at least, in (0, 1]; below 1 it changes the law.

    Raises:
        ValueError: if a name is unknown or a number is out of its range.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        vocab_size: int = 4,
        noise: str = "log_linear",
        epsilon: float = 0.0,
        sampler: str = "ancestral",
        eta: float = 0.02,
        temperature: float = 1.0,
        nucleus: float = 1.0,
    ) -> None:
        if noise not in NOISES:
            raise ValueError(f"noise is one of {sorted(NOISES)}, got {noise!r}")
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler is one of {sorted(SAMPLERS)}, got {sampler!r}")
        if not (0 <= epsilon < 1 and 0 <= eta <= 1 and temperature > 0 and 0 < nucleus <= 1):
            raise ValueError(
                f"got epsilon {epsilon}, eta {eta}, temperature {temperature} and nucleus "
                f"{nucleus}; they are in [0, 1), [0, 1], (0, inf) and (0, 1]"
            )
        self.set_timesteps(128)

    @property
    def sampler(self) -> Sampler:
        """What makes the steps."""
        return SAMPLERS[self.config.sampler]

    @property
    def mask(self) -> int:
        """The number of the mask among the symbols, V."""
        return int(self.config.vocab_size)

    def masked_share(self, t: Tensor) -> Tensor:
        """m(t), the probability that a position is masked at time t: the shape of t, in [0, 1]."""
        share: Tensor = (1 - self.config.epsilon) * NOISES[self.config.noise].share(t)
        return share

    def loss_weight(self, t: Tensor) -> Tensor:
        """m'(t) / m(t), of masked cross-entropy in the bound on -log p: MDLM, equation 10."""
        return NOISES[self.config.noise].weight(t)

    def add_noise(self, ids: Tensor, generator: Source, t: Tensor) -> Tensor:
        """Mask each position with probability m(t).

        Args:
            ids: clean, (B, L) int64.
            generator: of one uniform number per position.
            t: (B,), in [0, 1].
        """
        hidden = rand(ids.shape, generator, ids.device) < self.masked_share(t.double())[:, None]
        return ids.masked_fill(hidden, self.mask)

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None
    ) -> None:
        """Divide time into so many equal steps from 1 to 0.

        Afterwards `timesteps`, (n,) float32, are where steps begin, and `times`, (n + 1,), the ends
        of all of them.

        Raises:
            ValueError: if there is no step.
        """
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is at least 1, got {num_inference_steps}")
        self.num_inference_steps = num_inference_steps
        times = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)
        # Looked at on the CPU, in float64 and once, so that no step waits for a device.
        self._masked: list[float] = self.sampler.shares(self.masked_share, times).tolist()
        self.times = times.float().to(device or "cpu")
        self.timesteps = self.times[:-1]
        self._chance: Tensor | None = None

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample itself: the mask says all that a network needs to know."""
        return sample

    def step_log_probs(
        self, model_output: Tensor, timestep: Tensor | float, sample: Tensor
    ) -> Tensor:
        """Log p(next symbol | sample) at each position, (B, L, V + 1); differentiable in logits.

        Positions are independent given the sample, and `step` draws from this law.

        Args:
            model_output: logits of the clean symbols, (B, L, V).
            timestep: one of `timesteps`.
            sample: ids, (B, L) int64.

        Raises:
            ValueError: if the timestep is not one of `timesteps`, or the shapes do not fit.
            TypeError: if the sampler's positions are not independent.
        """
        return self.sampler.log_probs(self._move(model_output, timestep, sample))

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: Source = None,
        return_dict: bool = True,
    ) -> MaskedDiffusionSchedulerOutput | tuple[Tensor, Tensor]:
        """Draw the next states.

        Args:
            model_output: logits of the clean symbols, (B, L, V), at any position: those of symbols
                that are shown are not looked at.
            timestep: one of `timesteps`.
            sample: ids, (B, L) int64.
            generator: one, or one per row.
            return_dict: whether an output or a tuple comes back.

        Raises:
            ValueError: if the timestep is not one of `timesteps`, or the shapes do not fit.
        """
        move = self._move(model_output, timestep, sample)
        previous = self.sampler.draw(move, generator)
        clean = move.clean.argmax(-1)
        self._chance = self.sampler.remember(move, previous)
        if not return_dict:
            return previous, clean
        return MaskedDiffusionSchedulerOutput(prev_sample=previous, pred_original_sample=clean)

    def clean_log_probs(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """Log p(clean symbol | sample) from which steps are drawn, (B, L, V).

        Args:
            model_output: logits of the clean symbols, (B, L, V).
            sample: ids, (B, L) int64; what is shown is certain.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if model_output.shape != (*sample.shape, self.mask):
            raise ValueError(
                f"logits are (B, L, {self.mask}) for ids (B, L), got {tuple(model_output.shape)} "
                f"for {tuple(sample.shape)}"
            )
        logits = sharpened(model_output, self.config.temperature, self.config.nucleus)
        return subs_log_probs(logits, sample)

    def index_for_timestep(self, timestep: Tensor | float) -> int:
        """How many steps come before the one that begins at this time.

        Raises:
            ValueError: if none does.
        """
        n, t = self.num_inference_steps, float(timestep)
        k = round((1 - t) * n)
        if not 0 <= k < n or abs(1 - k / n - t) > 1e-6:
            raise ValueError(f"timestep is one of the {n} of this scheduler, got {t}")
        return k

    def _move(self, model_output: Tensor, timestep: Tensor | float, sample: Tensor) -> Move:
        k = self.index_for_timestep(timestep)
        return Move(
            self.clean_log_probs(model_output, sample),
            sample,
            self._masked[k],
            self._masked[k + 1],
            self.num_inference_steps - k,
            self.config.eta,
            self._chance,
        )
