"""Inference-time steering: particles that are weighted by a reward while they denoise."""

from diffreward.steering.drop_in import SteeredPipeline, steer
from diffreward.steering.methods import (
    DAS,
    SVDD,
    BeamSearch,
    BestOfN,
    FKSteering,
    Guidance,
    NoiseSearch,
    PathSearch,
    SteeringMethod,
)
from diffreward.steering.on_diffusion import steer_diffusion
from diffreward.steering.result import Steered

__all__ = [
    "DAS",
    "SVDD",
    "BeamSearch",
    "BestOfN",
    "FKSteering",
    "Guidance",
    "NoiseSearch",
    "PathSearch",
    "Steered",
    "SteeredPipeline",
    "SteeringMethod",
    "steer",
    "steer_diffusion",
]
