"""The class of this pipeline."""

from diffreward.sequences.pipeline import MaskedDiffusionPipeline
