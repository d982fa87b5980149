"""Stable Diffusion 1.x and 2.x: a `StableDiffusionPipeline` seen as a Markov chain.

Sources: Rombach et al. (2022), arXiv:2112.10752; the transitions are those of DDIM, Song et al.
(2021), arXiv:2010.02502, equations 12 and 16, and of DDPM, Ho et al. (2020), arXiv:2006.11239,
equation 7, on the sub-sampled grid of the pipeline's own scheduler. a_k below is the cumulative
alpha of the state x_k: near 0 for noise, near 1 for data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from diffreward.diffusion import Condition, Diffusion, Step
from diffreward.loading import check_source
from diffreward.random import Source, randn
from diffreward.samples import Images
from diffreward.transitions import Dirac, Gaussian, Transition

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class StableDiffusion(Diffusion):
    """Text to image, with LoRA, guidance and the sampler of your choice.

    Nothing is loaded before it is needed, so a mistake in a configuration costs no waiting.

    Args:
        pipeline: a hub id, a folder, or a `StableDiffusionPipeline`.
        num_steps: denoising steps K.
        sampler: "ddim" or "ddpm"; grid and boundary follow the diffusers scheduler of that name,
            made from the pipeline's own scheduler configuration.
        eta: noise of "ddim", 0 (an ODE, without densities) to 1 (that of DDPM).
        guidance_scale: of classifier-free guidance; 1 is none and halves the cost.
        negative_prompt: what guidance leads away from.
        height: of the images in pixels; the network's own if not given.
        width: of the images in pixels; the network's own if not given.
        dtype: of the frozen weights. States and probabilities are float32 always.
    """

    def __init__(
        self,
        pipeline: str | StableDiffusionPipeline,
        num_steps: int = 50,
        sampler: Literal["ddim", "ddpm"] = "ddim",
        eta: float = 1.0,
        guidance_scale: float = 5.0,
        negative_prompt: str = "",
        height: int | None = None,
        width: int | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps is at least 1, got {num_steps}")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta lies in [0, 1], got {eta}")
        if sampler == "ddpm" and eta != 1:
            raise ValueError(f"ddpm has eta = 1 by definition, got {eta}; use sampler ddim")
        if isinstance(pipeline, str):
            check_source(pipeline, "model_index.json")
        self._source, self._steps, self._sampler, self._eta = pipeline, num_steps, sampler, eta
        self.guidance_scale, self.negative_prompt = guidance_scale, negative_prompt
        self._size, self._dtype = (height, width), getattr(torch, dtype)
        self._network: nn.Module | None = None
        self._embeddings: dict[str, Tensor] = {}

    @cached_property
    def pipe(self) -> StableDiffusionPipeline:
        """The diffusers pipeline, loaded on first use; its components are frozen."""
        from diffusers import StableDiffusionPipeline
        from diffusers.utils.import_utils import is_xformers_available

        pipe = self._source
        if isinstance(pipe, str):
            pipe = StableDiffusionPipeline.from_pretrained(
                pipe, dtype=self._dtype, safety_checker=None, requires_safety_checker=False
            )
        if torch.cuda.is_available() and is_xformers_available():
            pipe.enable_xformers_memory_efficient_attention()
        for module in (pipe.unet, pipe.vae, pipe.text_encoder):
            module.requires_grad_(False).eval()
        return pipe

    @cached_property
    def _grid(self) -> _Grid:
        return _Grid.of(self.pipe.scheduler.config, self._sampler, self._steps, self._eta)

    @property
    def num_steps(self) -> int:
        return self._steps

    @property
    def stochastic_steps(self) -> Sequence[int]:
        if self._eta == 0:
            return ()
        return [k for k in range(self._steps) if self._grid.std[k] > 0]

    @property
    def network(self) -> nn.Module:
        return self.pipe.unet if self._network is None else self._network

    @network.setter
    def network(self, module: nn.Module) -> None:
        self._network = module

    @property
    def settings(self) -> Mapping[str, object]:
        source = self._source
        base = source if isinstance(source, str) else source.config.get("_name_or_path", "")
        return {
            "base_model": base,
            "sampler": self._sampler,
            "num_inference_steps": self._steps,
            "eta": self._eta,
            "guidance_scale": self.guidance_scale,
            "negative_prompt": self.negative_prompt,
        }

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> None:
        self.pipe.to(device)
        self.network.to(device)

    def release_encoders(self) -> None:
        self.pipe.text_encoder.to("cpu")

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Each prompt goes through the text encoder once; its embedding is kept."""
        wanted = [*prompts, self.negative_prompt] if self.guidance_scale > 1 else [*prompts]
        new = [p for p in dict.fromkeys(wanted) if p not in self._embeddings]
        for start in range(0, len(new), 64):
            self._embed(new[start : start + 64])

        def stack(texts: Sequence[str]) -> Tensor:
            return torch.stack([self._embeddings[text] for text in texts]).to(self._device)

        tensors = {"prompt": stack(prompts)}
        if self.guidance_scale > 1:
            tensors["negative"] = stack([self.negative_prompt] * len(prompts))
        return Condition(tuple(prompts), tensors)

    @torch.no_grad()
    def _embed(self, texts: list[str]) -> None:
        encoder = self.pipe.text_encoder
        # Outside of any autocast: the same prompt has the same embedding in every context.
        with torch.autocast(encoder.device.type, enabled=False):
            embeddings, _ = self.pipe.encode_prompt(texts, encoder.device, 1, False)
        self._embeddings.update(zip(texts, embeddings.cpu(), strict=True))

    def prior(self, n: int, source: Source = None) -> Tensor:
        config, scale = self.pipe.unet.config, self.pipe.vae_scale_factor
        height, width = (config.sample_size if s is None else s // scale for s in self._size)
        return randn((n, config.in_channels, height, width), source, self._device)

    def step(self, x: Tensor, k: int, condition: Condition) -> Step:
        prediction = self._predict(x, self._grid.times[k], condition)
        clean, noise = self._grid.split(x, prediction, self._grid.alphas[k])
        return Step(self._grid.transition(clean, noise, k), clean)

    def _predict(self, x: Tensor, t: int, condition: Condition) -> Tensor:
        """The guided output of the network at training time t, float32."""
        prompt = condition.tensors["prompt"]
        if self.guidance_scale <= 1:
            return self._network_output(x, t, prompt)
        negative = condition.tensors["negative"]
        both = self._network_output(torch.cat([x, x]), t, torch.cat([negative, prompt]))
        without, with_prompt = both.chunk(2)
        return without + self.guidance_scale * (with_prompt - without)

    def _network_output(self, x: Tensor, t: int | Tensor, embeddings: Tensor) -> Tensor:
        output: Tensor = self.network(
            x.to(embeddings.dtype), t, encoder_hidden_states=embeddings, return_dict=False
        )[0]
        return output.to(x.dtype)

    def corrupt(self, clean: Tensor, t: Tensor, source: Source = None) -> tuple[Tensor, Tensor]:
        noise = randn(clean.shape, source, clean.device)
        alpha = self._grid.table.to(clean)[self._training_time(t)].reshape(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        if self._grid.prediction == "v_prediction":
            return noisy, alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        return noisy, noise

    def matching_error(
        self, noisy: Tensor, t: Tensor, condition: Condition, target: Tensor
    ) -> Tensor:
        """Mean squared error of the conditional prediction, without guidance."""
        time = self._training_time(t)
        output = self._network_output(noisy, time, condition.tensors["prompt"])
        return (output - target).square().flatten(1).mean(1)

    def _training_time(self, t: Tensor) -> Tensor:
        total = len(self._grid.table)
        return (t.to(self._device) * total).long().clamp(max=total - 1)

    def decode(self, x: Tensor) -> Images:
        vae = self.pipe.vae
        latents = (x / vae.config.scaling_factor).to(vae.dtype)
        with torch.autocast(x.device.type, enabled=False):
            pixels = vae.decode(latents, return_dict=False)[0].float()
        return Images((pixels / 2 + 0.5).clamp(0, 1))

    def save_adapter(
        self, folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]
    ) -> None:
        self.pipe.save_lora_weights(
            folder, unet_lora_layers=dict(weights), unet_lora_adapter_metadata=dict(config)
        )

    def save_network(self, folder: Path) -> None:
        self.pipe.save_pretrained(folder)


class _Grid:
    """Times and cumulative alphas of K steps, and the transition between them, in float32.

    Args:
        times: training times t_k of the K steps, descending.
        alphas: a_k at those times.
        next_alphas: a_{k+1}, the last one being the boundary of the scheduler.
        table: cumulative alphas of all training times.
        eta: share of the posterior's standard deviation.
        config: the scheduler's.
    """

    def __init__(
        self,
        times: list[int],
        alphas: Tensor,
        next_alphas: Tensor,
        table: Tensor,
        eta: float,
        config: Any,
    ) -> None:
        self.times, self.table = times, table
        self.prediction = config.prediction_type
        self._clip = config.clip_sample_range if config.clip_sample else None
        variance = (1 - next_alphas) / (1 - alphas) * (1 - alphas / next_alphas)
        # Python floats: no synchronisation with a device, and float64 until they meet a state.
        self.alphas, self.next_alphas = alphas.tolist(), next_alphas.tolist()
        self.std = (eta * variance.clamp_min(0).sqrt()).tolist()

    @classmethod
    def of(cls, config: Any, sampler: str, num_steps: int, eta: float) -> _Grid:
        """The grid of a diffusers scheduler.

        Raises:
            ValueError: if the scheduler does something that these transitions do not.
        """
        from diffusers import DDIMScheduler, DDPMScheduler

        if config.get("thresholding"):
            raise ValueError("dynamic thresholding depends on the batch and is not supported")
        scheduler = (DDIMScheduler if sampler == "ddim" else DDPMScheduler).from_config(config)
        if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"unknown prediction type {scheduler.config.prediction_type!r}")
        scheduler.set_timesteps(num_steps)
        times, table = scheduler.timesteps.tolist(), scheduler.alphas_cumprod.double()
        if sampler == "ddim":
            stride = scheduler.config.num_train_timesteps // num_steps
            following, boundary = (
                [t - stride for t in times],
                scheduler.final_alpha_cumprod.double(),
            )
        else:
            following, boundary = [*times[1:], -1], torch.tensor(1.0, dtype=torch.float64)
        next_alphas = torch.stack([table[t] if t >= 0 else boundary for t in following])
        return cls(times, table[times], next_alphas, table, eta, scheduler.config)

    def split(self, x: Tensor, prediction: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """What the network takes for data and for noise in the states x."""
        signal, noise_level = alpha**0.5, (1 - alpha) ** 0.5
        if self.prediction == "v_prediction":
            clean = signal * x - noise_level * prediction
            noise = signal * prediction + noise_level * x
        else:
            clean = (x - noise_level * prediction) / signal
            noise = prediction
        if self._clip is not None:
            clean = clean.clamp(-self._clip, self._clip)
        return clean, noise

    def transition(self, clean: Tensor, noise: Tensor, k: int) -> Transition:
        """DDIM's step k; deterministic where its standard deviation is 0."""
        alpha, std = self.next_alphas[k], self.std[k]
        mean = alpha**0.5 * clean + max(1 - alpha - std**2, 0.0) ** 0.5 * noise
        return Gaussian(mean, mean.new_full((len(mean),), std)) if std > 0 else Dirac(mean)
