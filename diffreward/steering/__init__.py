"""Inference-time steering: particles that are weighted by a reward while they denoise."""
