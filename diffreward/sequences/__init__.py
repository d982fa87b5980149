"""Masked diffusion of sequences as objects of diffusers: scheduler, denoisers, pipeline."""
