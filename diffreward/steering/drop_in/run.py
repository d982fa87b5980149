"""One run of a pipeline with G * N particles: what is called, judged, counted and returned."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from diffreward.diffusion import chunks
from diffreward.random import stream
from diffreward.reward import RewardFunction, score
from diffreward.samples import Samples, concatenate
from diffreward.steering.drop_in.arguments import Expanded
from diffreward.steering.drop_in.belongings import own_guiders
from diffreward.steering.drop_in.decoding import Decode, Decoder, pipeline_call
from diffreward.steering.drop_in.denoiser import Watched, networks, replaced
from diffreward.steering.drop_in.hook import hook
from diffreward.steering.drop_in.media import read_media
from diffreward.steering.drop_in.session import Session, State
from diffreward.steering.drop_in.token_laws import family_of
from diffreward.steering.drop_in.tokens import NO_GRADIENT, DrawnTokens, Show, Writer, look_ahead
from diffreward.steering.guidance import gradient
from diffreward.steering.methods import Cost, FKSteering
from diffreward.steering.result import Steered, choose
from diffreward.steering.smc import ParticleFilter

Value = Callable[[State, Sequence[str]], Tensor]
"""Maps states on the way and the prompts of their rows to what can be expected of them, (B,)."""


@dataclass(frozen=True)
class Judging:
    """How particles are judged; see `diffreward.steer`."""

    reward: RewardFunction
    eta: float = 1.0
    value: Value | None = None
    decoder: Decode | None = None
    preview_vae: nn.Module | None = None
    preview_shrink: int = 1
    rows: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1 or self.rows < 1 or self.preview_shrink < 1:
            raise ValueError(
                f"got eta {self.eta}, preview_shrink {self.preview_shrink} and rows {self.rows}; "
                "eta is in [0, 1], and the others are at least 1"
            )


class PipelineRun:
    """Calls a copy of a pipeline whose scheduler and networks are watched.

    Args:
        pipe: the pipeline; neither it nor its scheduler is changed.
        method: the particle filter.
        judging: of its particles.
        call: the arguments, with a row per particle.
        seeds: of the random numbers of resampling, one per system.

    Raises:
        ValueError: if method or judging ask for what the pipeline's states do not allow.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        method: FKSteering,
        judging: Judging,
        call: Expanded,
        seeds: Sequence[int],
    ) -> None:
        self._pipe, self._method, self._judging, self._call = pipe, method, judging, call
        total = len(call.prompts) * method.particles
        self._rows = torch.arange(total)
        self._prompts = [call.prompts[row // method.particles] for row in range(total)]
        self._choices = [stream(seed, "select") for seed in seeds]
        resample = [stream(seed, "resample") for seed in seeds]
        particles = method.particle_filter(len(call.prompts), resample)
        self._session = Session(method, particles, self._judge, call.noise, judging.eta, self._tell)
        self._watched = {
            name: Watched(module, total, judging.rows, lambda: self._session.alike)
            for name, module in networks(pipe).items()
        }
        self._decode = Decoder(pipe, call, self._watched)
        self._preview = self._show(seeds)
        self._bar: Any = None
        self._scored_rows = 0

    @property
    def start(self) -> Tensor:
        """The states that the first step has seen, (G * N, *event)."""
        if self._session.start is None:
            raise ValueError("the pipeline has not called its scheduler; it cannot be steered")
        return self._session.start

    @property
    def noise_scale(self) -> float:
        """What the pipeline has multiplied standard normal latents by."""
        return float(getattr(self._session.pipe.scheduler, "init_noise_sigma", 1.0))

    def __call__(self) -> tuple[Any, Steered]:
        """All particles' outputs in the pipeline's class, and how they came about."""
        begun = time.perf_counter()
        with self._gradients():
            outputs = pipeline_call(self._pipe)(self._inner(), **self._call.keywords)
        with torch.no_grad():
            particles = self._finished(outputs)
            rewards = self._score(particles)
        self._session.finish(rewards)
        cloud = self._session.filter.cloud(rewards)
        rewards = rewards.reshape(cloud.log_weights.shape)
        chosen = choose(self._method, cloud, rewards, self._choices)
        best = torch.arange(len(chosen)) * self._method.particles + chosen
        steered = Steered(
            self._call.prompts,
            particles[best],
            chosen,
            particles,
            rewards,
            tuple(self._session.history),
            cloud,
            self._session.failures,
            Cost(
                self._session.network_rows,
                self._scored_rows,
                time.perf_counter() - begun,
            ),
            outputs,
        )
        return outputs, steered

    def _show(self, seeds: Sequence[int]) -> Show:
        """What shows the clean predictions of some rows on their way."""
        method, judging, family = self._method, self._judging, family_of(self._pipe.scheduler)
        if family is None:
            if method.draws > 1:
                raise ValueError(
                    f"got {method.draws} draws; {type(self._pipe.scheduler).__name__} predicts one "
                    "clean sample and has none to draw"
                )
            shrink, vae = judging.preview_shrink, judging.preview_vae
            return Decoder(self._pipe, self._call, self._watched, shrink, vae)
        if method.guidance > 0 or method.returns:
            raise ValueError(NO_GRADIENT)
        given = judging.decoder is not None or judging.preview_vae is not None
        if given or judging.preview_shrink > 1:
            raise ValueError(
                "this pipeline steps tokens, which it decodes itself: give no decoder, preview_vae "
                "and preview_shrink"
            )
        sources = [stream(seed, "draws", i) for seed in seeds for i in range(method.particles)]
        show = Writer(lambda: self._session.pipe) if family.text else self._decode
        return DrawnTokens(method.draws, sources, show)

    def _inner(self) -> DiffusionPipeline:
        """The pipeline as it is called: a copy that shares all weights."""
        inner = copy.copy(self._pipe)
        scheduler = copy.deepcopy(self._pipe.scheduler)
        hook(scheduler, self._session)
        vars(inner)["scheduler"] = scheduler
        for name, watched in self._watched.items():
            vars(inner)[name] = replaced(vars(self._pipe)[name], watched)
        vars(inner)["progress_bar"] = self._progress_bar
        if "maybe_free_model_hooks" in dir(type(inner)):
            # Offloading goes by the components of the pipeline itself.
            vars(inner)["maybe_free_model_hooks"] = self._pipe.maybe_free_model_hooks
        own_guiders(inner)
        self._session.pipe = inner
        return inner

    def _judge(self, state: State) -> tuple[Tensor, Tensor | None]:
        """Rewards of all rows at a state, and their gradient where guidance asks for it."""
        rewards, slopes = [], []
        with torch.set_grad_enabled(state.leaf is not None):
            for rows in chunks(len(self._rows), self._judging.rows):
                clean = [x[rows.to(x.device)].detach() for x in state.clean]
                clean[0].requires_grad_(state.leaf is not None)
                found = self._look(state, clean, rows)
                rewards.append(found.detach().cpu().double())
                if state.leaf is not None:
                    slopes.append(gradient(found, clean[0], self._judging.reward))
        if state.leaf is None:
            return torch.cat(rewards), None
        # By the chain rule, so that decoder and reward hold one block's activations at a time.
        (push,) = torch.autograd.grad(state.clean[0], state.leaf, torch.cat(slopes))
        return torch.cat(rewards), push.float()

    def _look(self, state: State, clean: list[Tensor], rows: Tensor) -> Tensor:
        prompts = [self._prompts[row] for row in rows.tolist()]
        if self._judging.value is not None:
            x = state.x[rows.to(state.x.device)]
            self._scored_rows += len(rows)
            return self._judging.value(replace(state, x=x, clean=tuple(clean)), prompts)
        if self._judging.decoder is not None:
            samples = self._judging.decoder(clean[0])
        else:
            samples = self._preview(clean, rows)
        self._scored_rows += len(samples)
        # Tokens are judged by several samples of each row.
        draws = len(samples) // len(rows)
        rewards = score(self._judging.reward, samples, [p for p in prompts for _ in range(draws)])
        return look_ahead(rewards.reshape(len(rows), draws), self._method.scale)

    def _score(self, samples: Samples) -> Tensor:
        self._scored_rows += len(samples)
        parts = []
        for rows in chunks(len(self._rows), self._judging.rows):
            prompts = [self._prompts[row] for row in rows.tolist()]
            parts.append(score(self._judging.reward, samples[rows], prompts).cpu().double())
        return torch.cat(parts)

    def _finished(self, outputs: Any) -> Samples:
        """The finished particles as the reward sees them."""
        if self._judging.decoder is None and self._call.keywords.get("output_type") != "latent":
            return read_media(self._pipe, outputs)
        parts = []
        for rows in chunks(len(self._rows), self._judging.rows):
            x = [state[rows.to(state.device)] for state in self._session.end]
            decoder = self._judging.decoder
            parts.append(self._decode(x, rows) if decoder is None else decoder(x[0]))
        return concatenate(parts)

    def _tell(self, rewards: Tensor, particles: ParticleFilter) -> None:
        if self._bar is not None:
            best, mean = rewards.nan_to_num(-torch.inf).amax(1).mean(), rewards.nanmean()
            ess = particles.ess.mean()
            self._bar.set_postfix_str(f"best {best:.4g} mean {mean:.4g} ess {ess:.1f}", False)

    def _progress_bar(self, *args: Any, **kwargs: Any) -> Any:
        self._bar = type(self._pipe).progress_bar(self._pipe, *args, **kwargs)
        return self._bar

    @contextmanager
    def _gradients(self) -> Iterator[None]:
        """Gradients with respect to states and not to weights, if guidance needs them."""
        if self._method.guidance == 0:
            with torch.no_grad():
                yield
            return
        modules = [m for m in self._pipe.components.values() if isinstance(m, nn.Module)]
        weights = [w for module in modules for w in module.parameters() if w.requires_grad]
        for weight in weights:
            weight.requires_grad_(False)
        try:
            with torch.enable_grad():
                yield
        finally:
            for weight in weights:
                weight.requires_grad_(True)
