"""How well a sequence fits a backbone: its likelihood under ProteinMPNN.

Source: Dauparas et al. (2022), Science 378:49, doi:10.1126/science.add2187. The `score` of
github.com/dauparas/ProteinMPNN is the mean over residues of minus the log-likelihood for one random
order of decoding; the likelihood here is minus that, and the mean over several orders.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffreward.alphabets import PROTEIN, one_hot
from diffreward.random import stream
from diffreward.reward import Reward
from diffreward.samples import Samples


class ProteinMPNNLikelihood(Reward):
    """Mean log p(residue | residues decoded before it, backbone), in nats, below 0.

    Uniform guesses score -3.0; the repository reports -1.59 and -1.47 for the native sequences of
    5L33 and 6MRR, and -0.96 to -0.82 for its designs at temperature 0.1. Differentiable in relaxed
    sequences. The prompt names the backbone, a PDB or mmCIF file, as
    `diffreward.sequences.structure.read_backbone` reads it; residues without all backbone atoms are
    not part of it. The orders depend on the seed and the length only.

    Args:
        checkpoint: a file of github.com/dauparas/ProteinMPNN (MIT) with all backbone atoms, such as
            ``vanilla_model_weights/v_48_020.pt``.
        orders: of decoding, averaged over; scores of one order differ by some 0.01.
        seed: of the orders.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another kind, or there is no order.
    """

    def __init__(self, checkpoint: str, orders: int = 4, seed: int = 0) -> None:
        from diffreward.sequences.denoisers.inverse_folding import InverseFoldingDenoiser

        if orders < 1:
            raise ValueError(f"the likelihood is a mean over at least 1 order, got {orders}")
        self.orders = orders
        self.seed = seed
        self._model = InverseFoldingDenoiser.from_proteinmpnn(checkpoint).requires_grad_(False)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B samples and their B prompts to scores, (B,) float32.

        Raises:
            ValueError: if a backbone has another length than the sequences.
        """
        from diffreward.sequences.structure import encode_files

        rows = one_hot(samples, PROTEIN)
        model = self._model.to(rows.device)
        condition = encode_files(model.graph, prompts, rows.shape[1])
        unknown = model.config.vocab_size + 1 - len(PROTEIN)
        weights = F.pad(rows, (0, unknown))
        scores = [
            (weights * model.causal_log_probs(weights, order.to(rows.device), **condition)).sum(-1)
            for order in self._orders(*rows.shape[:2])
        ]
        return torch.stack(scores).mean((0, 2))

    def _orders(self, rows: int, length: int) -> list[Tensor]:
        """The orders of decoding, each (rows, length), the same for all rows."""
        sources = [stream(self.seed, number) for number in range(self.orders)]
        return [torch.randperm(length, generator=s).expand(rows, length) for s in sources]
