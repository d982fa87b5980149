"""The denoiser of inverse folding: ProteinMPNN, seeing every residue that is there.

Source: Dauparas et al. (2022), Science 378:49, doi:10.1126/science.add2187; as a masked diffusion
model, without an order of decoding: `ProteinMPNNFMIF` of DRAKES, Wang et al. (2025), ICLR,
arXiv:2410.13643, appendix. ProteinMPNN predicts 21 letters, of which X is "unknown"; here X is the
mask, so that the V = 20 clean symbols are the amino acids. DRAKES has a mask beside X: V = 21.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from diffreward.sequences.backbone_edges import gather
from diffreward.sequences.denoisers.interface import DenoiserOutput, weights_of
from diffreward.sequences.protein_graph import BackboneGraph, Encoding


class InverseFoldingDenoiser(ModelMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]
    """Predicts the amino acids of a backbone from those that are not masked. Knows no time.

    1.66 million parameters. Noise on the coordinates (0.1 angstrom in DRAKES, 0.02 to 0.3 in
    ProteinMPNN) makes it robust; it is added to what goes in, by who trains.

    Args:
        vocab_size: V; 20 with symbols in the order of `diffreward.alphabets.PROTEIN`, 21 with X.
        hidden: width of nodes and edges.
        layers: of the encoder, and of the decoder.
        neighbours: k, of each residue; 30 in DRAKES, 48 in the files of ProteinMPNN.
        dropout: of every message, in training; 0.1 in both papers' training.
        relay_masked: whether a masked neighbour passes on what it has heard from others, as in
            DRAKES. If not, it counts as ProteinMPNN's residues do that are not yet decoded, which
            is what ProteinMPNN's own weights know.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        vocab_size: int = 20,
        hidden: int = 128,
        layers: int = 3,
        neighbours: int = 30,
        dropout: float = 0.0,
        relay_masked: bool = True,
    ) -> None:
        super().__init__()
        self.graph = BackboneGraph(vocab_size + 1, hidden, layers, neighbours, dropout)
        # One row more than needed: the published files predict the unknown or the mask as well.
        self.W_out = nn.Linear(hidden, vocab_size + 1)
        self.graph.reset_parameters()
        nn.init.xavier_uniform_(self.W_out.weight)

    def encode(self, coordinates: Tensor, residue_index: Tensor, chain: Tensor) -> Encoding:
        """Everything that depends on the backbones only, to be given to `forward` by name.

        Args:
            coordinates: (B, L, 4, 3) in angstrom, of N, CA, C and O.
            residue_index: (B, L) int64, numbers of the residues along their chain, gaps counted.
            chain: (B, L) int64, different for different chains.
        """
        return self.graph.encode(coordinates, residue_index, chain)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | None = None,
        return_dict: bool = True,
        **condition: Tensor,
    ) -> DenoiserOutput | tuple[Tensor]:
        """Logits of the clean symbols, (B, L, V) float32.

        Args:
            sample: ids (B, L) int64, V being the mask, or weights (B, L, V + 1).
            timestep: not looked at.
            return_dict: whether to return a `DenoiserOutput`, or a tuple.
            condition: the arguments of `encode`, or what it returned: `nodes`, `edges` and
                `neighbours`. The second saves three quarters of the work and trains the decoder
                only.

        Raises:
            TypeError: if the condition is something else.
            ValueError: if the sample has another shape.
        """
        weights, shown = self._weights(sample), None
        if not self.config.relay_masked:
            shown = 1 - weights[..., -1:]
            weights = F.pad(weights[..., :-1], (0, 1))
        nodes = self.graph.decode(self.graph.encoding(condition), weights, shown)
        logits = self.W_out(nodes)[..., :-1].float()
        return DenoiserOutput(logits=logits) if return_dict else (logits,)

    def causal_log_probs(self, sample: Tensor, order: Tensor, **condition: Tensor) -> Tensor:
        """Log p(symbol | the symbols decoded before it), (B, L, V + 1) float32, in nats.

        ProteinMPNN as it was trained. The chain rule makes a likelihood of it: the sum over the
        sequence of the entries of its own symbols. The last column is X.

        Args:
            sample: ids (B, L) int64, or weights (B, L, V + 1); gradients pass through weights.
            order: (B, L) int64, the positions in the order of decoding.
            condition: as of `forward`.
        """
        encoding = self.graph.encoding(condition)
        rank = order.argsort(-1)[..., None]
        earlier = gather(rank, encoding.neighbours) < rank[:, :, None]
        nodes = self.graph.decode(encoding, self._weights(sample), earlier=earlier)
        log_p: Tensor = self.W_out(nodes).float().log_softmax(-1)
        return log_p

    @classmethod
    def from_proteinmpnn(cls, path: str, relay_masked: bool = False) -> InverseFoldingDenoiser:
        """The network of a file of github.com/dauparas/ProteinMPNN, such as ``v_48_020.pt``.

        Where all is masked, its output is that of ``--unconditional_probs_only``, without X. It was
        not trained to see the rest of a sequence in no order; fine-tune it as a denoiser.

        Args:
            path: of the file, with all backbone atoms (not "CA only").
            relay_masked: as of the class; True for files of DRAKES in the same format.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is of another kind.
        """
        file = Path(path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(
                f"there is no checkpoint at {file.absolute()}; v_48_020.pt in "
                "github.com/dauparas/ProteinMPNN, vanilla_model_weights, is one"
            )
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        try:
            state, neighbours = checkpoint["model_state_dict"], checkpoint["num_edges"]
            rows, hidden = state["W_s.weight"].shape
            layers = len({name.split(".")[1] for name in state if name.startswith("decoder_")})
            with torch.random.fork_rng(devices=[]):
                # New parameters draw random numbers before the file's take their place.
                model: InverseFoldingDenoiser = cls(
                    rows - 1, hidden, layers, int(neighbours), relay_masked=relay_masked
                )
            model.load_state_dict({_renamed(name): tensor for name, tensor in state.items()})
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{path} is not a ProteinMPNN with all atoms: {error}") from error
        model.eval()
        return model

    def _weights(self, sample: Tensor) -> Tensor:
        return weights_of(sample, self.config.vocab_size, self.dtype)


def _renamed(name: str) -> str:
    return name if name.startswith("W_out.") else f"graph.{name}"
