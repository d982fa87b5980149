"""Steering any pipeline of diffusers from its scheduler."""

from diffreward.steering.drop_in.pipeline import SteeredPipeline, steer

__all__ = ["SteeredPipeline", "steer"]
