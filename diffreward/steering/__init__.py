"""Inference-time steering: particles that are weighted by a reward while they denoise."""

from diffreward.steering.methods import BestOfN, FKSteering, SteeringMethod
from diffreward.steering.steer import Steered, steer_diffusion

__all__ = ["BestOfN", "FKSteering", "Steered", "SteeringMethod", "steer_diffusion"]
