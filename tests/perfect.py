"""Networks that know their data, one for each way in which diffusers asks a network.

A network sees what a pipeline gives it, a scaled sample and a timestep, and knows the noise from
how such networks are trained: nothing here reads `diffreward`.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

CENTRE, SPREAD, SHAPE = 0.4, 0.3, (2, 4, 4)
"""Of the data: two normal laws at (CENTRE, CENTRE, ...) and its negative."""

STABLE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "clip_denoised": False,
}


def mixture_mean(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[clean | x] where x = alpha * clean + sigma * noise, (B, *event), by Bayes."""
    variance = (alpha * SPREAD) ** 2 + sigma**2
    side = torch.tanh(alpha * CENTRE * x.flatten(1).sum(1) / variance).reshape(-1, 1, 1, 1)
    return side * CENTRE + alpha * SPREAD**2 / variance * (x - alpha * CENTRE * side)


def point_mean(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[clean | x] where all data are one point."""
    return torch.full_like(x, CENTRE)


Mean = Callable[[Tensor, float, float], Tensor]
Noise = Callable[[Any, float], tuple[float, float]]


def trained(scheduler: Any, t: float) -> tuple[float, float]:
    """Of a network trained at whole timesteps; between them, sigma is log-linear as in Karras."""
    table = scheduler.alphas_cumprod.double().numpy()
    sigma = math.exp(np.interp(t, np.arange(len(table)), 0.5 * np.log((1 - table) / table)))
    return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)


def cosine(scheduler: Any, t: float) -> tuple[float, float]:
    s = 0.008
    share = math.cos((t + s) / (1 + s) * math.pi / 2) / math.cos(s / (1 + s) * math.pi / 2)
    clipped = min(max(share**2, 0.0001), 0.9999)
    return math.sqrt(clipped), math.sqrt(1 - clipped)


def shifted(scheduler: Any, t: float) -> tuple[float, float]:
    """Timesteps are rounded down to integers here: the network sees the level itself."""
    sigma = scheduler.sigmas[scheduler.step_index or 0].item()
    return 1 - sigma, sigma


def quarter_turn(scheduler: Any, t: float) -> tuple[float, float]:
    return math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)


def straight(scheduler: Any, t: float) -> tuple[float, float]:
    return 1 - t / 1000, t / 1000


def inverted(scheduler: Any, t: float) -> tuple[float, float]:
    return t / 1000, 1 - t / 1000


def towards_data(scheduler: Any, t: float) -> tuple[float, float]:
    return t, 1 - t


def angle(scheduler: Any, t: float) -> tuple[float, float]:
    return math.cos(t), math.sin(t) * 0.5


def exploding(sigma: Callable[[float], float]) -> Noise:
    return lambda scheduler, t: (1.0, sigma(t))


def _karras(sign: float, data: float, offset: float = 0.0) -> Callable[..., Tensor]:
    def output(mean: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
        distance = sigma - offset
        skip = data**2 / (distance**2 + data**2)
        return (mean - skip * x) / (sign * distance * data / math.hypot(sigma, data))

    return output


OUTPUTS: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "epsilon": lambda mean, x, alpha, sigma: (x - alpha * mean) / sigma,
    "sample": lambda mean, x, alpha, sigma: mean,
    "v_prediction": lambda mean, x, alpha, sigma: alpha * (x - alpha * mean) / sigma - sigma * mean,
    "flow_prediction": lambda mean, x, alpha, sigma: (x - alpha * mean) / sigma - mean,
    "backwards": lambda mean, x, alpha, sigma: mean - (x - alpha * mean) / sigma,
    "trigflow": lambda mean, x, alpha, sigma: (alpha * x - mean) / (2 * sigma),
    "edm": _karras(1, 0.5),
    "edm_v": _karras(-1, 0.5),
    "stable_audio": _karras(-1, 1.0),
    "consistency": _karras(1, 0.5, offset=0.002),
}


@dataclass(frozen=True)
class Case:
    """One scheduler and the network that it expects.

    Args:
        name: of the class in diffusers.
        output: what the network predicts: a key of OUTPUTS.
        noise: alpha and sigma at a timestep.
        scaled: whether noise is that of the scaled sample, not of the sample.
        config: of the scheduler, over that of Stable Diffusion.
        timesteps: arguments of `set_timesteps`.
        arguments: of `step`.
    """

    name: str
    output: str
    noise: Noise = trained
    scaled: bool = True
    config: dict[str, Any] = field(default_factory=dict)
    timesteps: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = [f"{k}={v}" for d in (self.config, self.arguments) for k, v in d.items()]
        return "-".join([self.name.removesuffix("Scheduler"), self.output, *options])

    def scheduler(self) -> Any:
        """Made as configured; some take a second."""
        kind = getattr(diffusers, self.name)
        known = inspect.signature(kind.__init__).parameters
        asked = {**STABLE, "prediction_type": self.output, **self.config}
        return kind(**{k: v for k, v in asked.items() if k in known or k in self.config})

    def begin(self, scheduler: Any) -> None:
        """Start anew, with 8 steps."""
        scheduler.set_timesteps(**{"num_inference_steps": 8, **self.timesteps})

    def network(self, scheduler: Any, mean: Mean, sample: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """The output, and the mean of the data that it stands for, both (B, *event)."""
        x = sample.double()
        if hasattr(scheduler, "scale_model_input"):
            scaled = scheduler.scale_model_input(x, t)
            x = scaled if self.scaled else x
        alpha, sigma = self.noise(scheduler, t.item())
        clean = mean(x, alpha, sigma)
        return OUTPUTS[self.output](clean, x, alpha, sigma).float(), clean

    def step(self, scheduler: Any, k: int, output: Tensor, sample: Tensor, memory: Any) -> Any:
        """One call as a pipeline makes it; memory is what the last call returned second."""
        times = scheduler.timesteps
        following = times[k + 1] if k + 1 < len(times) else None
        if self.name == "CogVideoXDPMScheduler":
            back = times[k - 1] if k > 0 else None
            return scheduler.step(output, memory, times[k], back, sample, return_dict=False)
        more = {"prev_timestep": following} if self.name == "UnCLIPScheduler" else {}
        t = times[k].expand(len(sample)) if self.name == "DDPMWuerstchenScheduler" else times[k]
        return scheduler.step(output, t, sample, return_dict=False, **more, **self.arguments)


def _kinds(names: str, *outputs: str, **more: Any) -> list[Case]:
    return [
        Case(f"{name}Scheduler", output, **more) for name in names.split() for output in outputs
    ]


_ALL = ("epsilon", "sample", "v_prediction")
_SOLVERS = "DPMSolverMultistep DPMSolverSinglestep DEISMultistep UniPCMultistep SASolver"

CASES = [
    *_kinds("DDIM DDIMParallel DDPM DDPMParallel LCM TCD CogVideoXDDIM CogVideoXDPM", *_ALL),
    *_kinds("EulerDiscrete LMSDiscrete HeunDiscrete", *_ALL),
    *_kinds(_SOLVERS, *_ALL),
    *_kinds("PNDM EulerAncestralDiscrete", "epsilon", "v_prediction"),
    *_kinds("KDPM2Discrete KDPM2AncestralDiscrete DPMSolverSDE", "epsilon", "v_prediction"),
    *_kinds("UnCLIP", "epsilon", "sample", config={"beta_schedule": "squaredcos_cap_v2"}),
    *_kinds("PNDM", "epsilon", config={"skip_prk_steps": True}),
    *_kinds("DDIM", "epsilon", config={"set_alpha_to_one": False}),
    *_kinds("DDIM", "epsilon", arguments={"eta": 1.0}),
    *_kinds("TCD", "epsilon", arguments={"eta": 0.0}),
    *_kinds("EulerDiscrete", "epsilon", config={"final_sigmas_type": "sigma_min"}),
    *_kinds(
        "DPMSolverMultistep DPMSolverSinglestep",
        "epsilon",
        config={"algorithm_type": "sde-dpmsolver++"},
    ),
    *_kinds(
        _SOLVERS,
        "flow_prediction",
        "epsilon",
        "sample",
        noise=shifted,
        config={"use_flow_sigmas": True, "flow_shift": 3.0},
    ),
    *_kinds("DDPMWuerstchen", "epsilon", noise=cosine),
    *_kinds("IPNDM", "v_prediction", noise=quarter_turn),
    *_kinds("FlowMatchEulerDiscrete FlowMatchHeunDiscrete", "flow_prediction", noise=straight),
    *_kinds("FlowMatchLCM LTXEulerAncestralRF", "flow_prediction", noise=straight),
    *_kinds(
        "FlowMatchEulerDiscrete",
        "flow_prediction",
        noise=straight,
        config={"shift": 3.0, "shift_terminal": 0.1},
    ),
    *_kinds("FlowMatchEulerDiscrete", "backwards", noise=inverted, config={"invert_sigmas": True}),
    *_kinds("MiniMaxH3", "backwards", noise=towards_data),
    *_kinds("SCM", "trigflow", noise=angle, timesteps={"intermediate_timesteps": None}),
    *[
        Case(
            f"EDM{solver}Scheduler",
            output,
            exploding(lambda t: math.exp(4 * t)),
            scaled=False,
            config={"prediction_type": kind, **more},
        )
        for output, kind in (("edm", "epsilon"), ("edm_v", "v_prediction"))
        for solver, more in (
            ("Euler", {}),
            ("DPMSolverMultistep", {}),
            ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
        )
    ],
    Case(
        "CosineDPMSolverMultistepScheduler",
        "stable_audio",
        exploding(lambda t: math.tan(t * math.pi / 2)),
        scaled=False,
        config={"prediction_type": "v_prediction", "sigma_max": 80},
    ),
    Case(
        "CMStochasticIterativeScheduler",
        "consistency",
        exploding(lambda t: math.exp(t / 250)),
        scaled=False,
        config={"clip_denoised": False},
    ),
]
