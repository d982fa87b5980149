"""A pipeline of diffusers whose data are a Gaussian mixture, and its chain's law by quadrature.

The pipeline is an ordinary one: its own loop, a network that answers in the scheduler's
parametrisation, any scheduler. The laws are written down here a second time, from the papers, so
that nothing that steers is tested against itself.

Source: DDIM, Song et al. (2021), arXiv:2010.02502, equation 12, whose eta = 1 is the posterior of
DDPM; for flows, the SDE with g = 3 sigma^2 of Kim et al. (2025), arXiv:2503.19385.
"""

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from perfect import OUTPUTS, straight, trained
from torch import Generator, Tensor, nn

from diffreward.pipelines.gaussian_mixture import GaussianMixture
from diffreward.reward import RewardFunction
from diffreward.samples import Vectors
from diffreward.steering import Steered, SteeringMethod, steer
from diffreward.steering.drop_in.run import Value

CURVE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS = {
    "ddim": DDIMScheduler(**CURVE, clip_sample=False),
    "ddpm": DDPMScheduler(**CURVE, clip_sample=False),
    "flow": FlowMatchEulerDiscreteScheduler(shift_terminal=0.05),
}
BIMODAL = GaussianMixture([0.6, 0.4], [[-1.0], [1.0]], 0.5)
STEPS = 20

Level = tuple[float, float]
"""Alpha and sigma of a state alpha * clean + sigma * noise."""


def posterior_mean(law: GaussianMixture, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[clean | x = alpha * clean + sigma * noise] by Bayes, (B, D) -> (B, D) float64."""
    x, variances = x.double(), (alpha * law.stds).square() + sigma**2
    away = x[:, None] - alpha * law.means
    log_modes = -0.5 * (away.square().sum(2) / variances + x.shape[1] * variances.log())
    modes = (law.weights.log() + log_modes).softmax(1)
    centres = law.means + (alpha * law.stds.square() / variances)[:, None] * away
    return (modes[..., None] * centres).sum(1)


class MixtureNetwork(nn.Module):
    """Answers exactly what a scheduler asks a network that is trained on a Gaussian mixture."""

    def __init__(self, law: GaussianMixture, scheduler: Any) -> None:
        super().__init__()
        self.law, self.scheduler = law, scheduler
        self.curved = "alphas_cumprod" in vars(scheduler)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        alpha, sigma = (trained if self.curved else straight)(self.scheduler, timestep.item())
        x = sample.flatten(1).double()
        kind = self.scheduler.config.prediction_type if self.curved else "flow_prediction"
        answer = OUTPUTS[kind](posterior_mean(self.law, x, alpha, sigma), x, alpha, sigma)
        return answer.reshape(sample.shape).to(sample.dtype)


@dataclass
class MixtureOutput(BaseOutput):
    """States (B, D, 1, 1)."""

    states: Tensor


class MixturePipeline(DiffusionPipeline):
    """Denoises one state (D, 1, 1) per prompt, as every pipeline of diffusers does."""

    def __init__(self, unet: nn.Module, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str],
        num_inference_steps: int = 20,
        generator: Generator | list[Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> Any:
        scheduler = self.scheduler
        scheduler.set_timesteps(num_inference_steps)
        if latents is None:
            latents = randn_tensor((len(prompt), self.unet.law.means.shape[1], 1, 1), generator)
        x = latents * getattr(scheduler, "init_noise_sigma", 1.0)
        more = {"generator": generator}
        more = {k: v for k, v in more.items() if k in inspect.signature(scheduler.step).parameters}
        with self.progress_bar(total=len(scheduler.timesteps)) as bar:
            for t in scheduler.timesteps:
                scaled = x
                if "scale_model_input" in dir(scheduler):
                    scaled = scheduler.scale_model_input(x, t)
                output = self.unet(scaled, t)
                x = scheduler.step(output, t, x, return_dict=False, **more)[0]
                bar.update()
        return MixtureOutput(states=x) if return_dict else (x,)


def mixture_pipeline(law: GaussianMixture, scheduler: Any) -> MixturePipeline:
    """A pipeline that knows its data, with a scheduler of its own."""
    return MixturePipeline(MixtureNetwork(law, scheduler), copy.deepcopy(scheduler))


def decode(states: Tensor) -> Vectors:
    """The points that states (B, D, 1, 1) are."""
    return Vectors(states.flatten(1))


def run(
    scheduler: Any,
    reward: RewardFunction,
    method: SteeringMethod,
    prompts: int | list[str],
    law: GaussianMixture = BIMODAL,
    value: Value | None = None,
    steps: int = STEPS,
) -> Steered:
    """One generator for all particles: quicker than one each, and as good for statistics."""
    pipe = mixture_pipeline(law, scheduler)
    steered = steer(pipe, reward, method, value=value, decoder=decode, rows=1 << 20, seed=0)
    texts = [""] * prompts if isinstance(prompts, int) else prompts
    steered(texts, num_inference_steps=steps, generator=Generator().manual_seed(0))
    return steered.last


def levels(scheduler: Any, steps: int) -> list[Level]:
    """Of the states of a DDIM, DDPM or flow scheduler whose last step takes all noise away."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    if "alphas_cumprod" in vars(scheduler):
        shares = scheduler.alphas_cumprod.double()[scheduler.timesteps].tolist()
        return [(math.sqrt(a), math.sqrt(1 - a)) for a in [*shares, 1.0]]
    return [(1 - s, s) for s in scheduler.sigmas.double().tolist()]


def step_law(
    x: Tensor, clean: Tensor, here: Level, there: Level, eta: float
) -> tuple[Tensor, float]:
    """Mean and standard deviation of one step, to less noise or back to more."""
    (alpha, sigma), (alpha_next, sigma_next) = here, there
    if sigma_next * alpha > sigma * alpha_next:
        kept = alpha_next / alpha
        return kept * x, math.sqrt(sigma_next**2 - (kept * sigma) ** 2)
    noise = (x - alpha * clean) / sigma
    if abs(alpha + sigma - 1) < 1e-6:
        kept = math.exp(-1.5 * eta**2 * (sigma**3 - sigma_next**3))
        std = min(sigma_next, sigma * math.sqrt(1 - kept**2))
        return alpha_next * clean + sigma_next * kept * noise, std
    std = eta * sigma_next / sigma * math.sqrt(1 - (alpha / alpha_next) ** 2)
    return alpha_next * clean + math.sqrt(sigma_next**2 - std**2) * noise, std


class Chain:
    """A chain of states in one dimension: masses at nodes, and the moves between them.

    A step without noise moves the nodes and keeps their masses. The trapezoidal rule on normal
    densities of standard deviation s is exact to exp(-2 (pi s / 0.02)^2): below 1e-16 for
    s > 0.027, the least of DDPM here. Flows draw as little as 0.005 late on, which the grid rounds:
    that is 1e-5 in the variance of the finished samples.

    Args:
        law: of the data, D = 1.
        route: levels of the states, one more than there are steps.
        etas: noise of each step.
    """

    def __init__(self, law: GaussianMixture, route: Sequence[Level], etas: Sequence[float]) -> None:
        grid = torch.linspace(-6, 6, 601, dtype=torch.float64)
        self.start = (-0.5 * grid.square()).softmax(0)
        self.nodes, self.moves = [grid], []
        self.route, self.law = list(route), law
        for (here, there), eta in zip(pairwise(route), etas, strict=True):
            x = self.nodes[-1]
            mean, std = step_law(x, self.clean(len(self.moves)), here, there, eta)
            away = (grid - mean[:, None]) / (std or 1.0)
            self.moves.append((-0.5 * away.square()).softmax(1) if std else None)
            self.nodes.append(grid if std else mean)

    def clean(self, k: int) -> Tensor:
        """The clean prediction at the nodes of state k, (n,)."""
        return posterior_mean(self.law, self.nodes[k][:, None], *self.route[k])[:, 0]

    def masses(self) -> Tensor:
        """Of the finished samples at the last nodes, (n,)."""
        mass = self.start
        for move in self.moves:
            mass = mass if move is None else mass @ move
        return mass

    def log_values(self, log_weight: Tensor) -> list[Tensor]:
        """The log of E[exp(log_weight) | state k] at the nodes of every state, (n,) each."""
        values = [log_weight]
        for move in reversed(self.moves):
            last = values[-1]
            values.append(last if move is None else _log_mean_exp(move, last))
        return values[::-1]


def _log_mean_exp(move: Tensor, values: Tensor) -> Tensor:
    top = values.max()
    return (move @ (values - top).exp()).log() + top
