"""A number for a sequence on a backbone, such as its stability: the oracle network of DRAKES.

Source: Wang et al. (2025), ICLR, arXiv:2410.13643, appendix: the network of the denoiser, averaged
over the residues, and two layers. There it is trained on the Megascale measurements of Tsuboyama et
al. (2023), Nature 620:434, to predict the change of the folding energy from the wild type's, by
squared error: AdamW, learning rate 1e-4, weight decay 1e-4, batches of 128, dropout 0.1.
"""

from __future__ import annotations

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from diffreward.sequences.denoisers.interface import weights_of
from diffreward.sequences.denoisers.inverse_folding import InverseFoldingDenoiser
from diffreward.sequences.protein_graph import BackboneGraph


class ProteinMPNNOracle(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Predicts one number per sequence and backbone, in the units of what it was trained on.

    Args:
        vocab_size: V; 20 with symbols in the order of `diffreward.alphabets.PROTEIN`.
        hidden: width of nodes and edges.
        layers: of the encoder, and of the decoder.
        neighbours: k, of each residue.
        dropout: of every message, in training.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        vocab_size: int = 20,
        hidden: int = 128,
        layers: int = 3,
        neighbours: int = 30,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.graph = BackboneGraph(vocab_size + 1, hidden, layers, neighbours, dropout)
        self.W_out_mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.graph.reset_parameters()

    @classmethod
    def from_denoiser(cls, denoiser: InverseFoldingDenoiser) -> ProteinMPNNOracle:
        """An untrained head on a copy of a trained denoiser, as in the paper."""
        size = {name: denoiser.config[name] for name in ("vocab_size", "hidden", "layers")}
        oracle: ProteinMPNNOracle = cls(**size, neighbours=denoiser.config.neighbours)
        oracle.graph.load_state_dict(denoiser.graph.state_dict())
        return oracle

    def forward(self, sample: Tensor, **condition: Tensor) -> Tensor:
        """The predictions, (B,) float32; differentiable in weights.

        Args:
            sample: ids (B, L) int64, or weights (B, L, V + 1); the last symbol is "unknown".
            condition: as of `InverseFoldingDenoiser.forward`; encodings are this network's own.

        Raises:
            TypeError: if the condition is something else.
            ValueError: if the sample has another shape.
        """
        weights = weights_of(sample, self.config.vocab_size, self.dtype)
        nodes = self.graph.decode(self.graph.encoding(condition), weights)
        predictions: Tensor = self.W_out_mlp(nodes.mean(1))[:, 0]
        return predictions.float()
