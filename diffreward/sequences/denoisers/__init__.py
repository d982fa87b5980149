"""Networks that predict clean sequences from masked ones: models of diffusers."""

from diffreward.sequences.denoisers.convolution import ConvDenoiser
from diffreward.sequences.denoisers.interface import DenoiserOutput, row_times, weights_of
from diffreward.sequences.denoisers.transformer import TransformerDenoiser

__all__ = ["ConvDenoiser", "DenoiserOutput", "TransformerDenoiser", "row_times", "weights_of"]
