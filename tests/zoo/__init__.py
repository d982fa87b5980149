"""Tiny pipelines of the real diffusers classes, with random weights made from configurations."""
