"""Embeddings: samples as rows of features, in which sets and prompts are compared.

An embedding is any callable that maps B samples and their prompts to (B, R, D): R rows of each
sample, be they windows of a sound, frames of a video or the one image, differentiable in the
samples.
"""
