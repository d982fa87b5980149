"""The stability of a sequence on a backbone, or another property, by an oracle network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffreward.alphabets import PROTEIN, one_hot
from diffreward.loading import check_source
from diffreward.reward import Reward
from diffreward.samples import Samples


class ProteinStability(Reward):
    """What an oracle network predicts, in the units of what it was trained on. Differentiable.

    The prompt names the backbone, a PDB or mmCIF file, as
    `diffreward.sequences.structure.read_backbone` reads it. Gradients lead out of what the oracle
    has seen: judge the results by another one, trained on other proteins.

    Args:
        oracle: a folder that `ProteinMPNNOracle.save_pretrained` wrote, or its id on the hub.

    Raises:
        FileNotFoundError: if there is no such folder.
    """

    def __init__(self, oracle: str) -> None:
        check_source(oracle, "config.json")
        from diffreward.sequences.protein_oracle import ProteinMPNNOracle

        self.oracle = oracle
        with torch.random.fork_rng(devices=[]):
            # New parameters draw random numbers before the file's take their place.
            self._network = ProteinMPNNOracle.from_pretrained(oracle).eval().requires_grad_(False)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B samples and their B prompts to scores, (B,) float32.

        Raises:
            ValueError: if a backbone has another length than the sequences.
        """
        from diffreward.sequences.structure import encode_files

        rows = one_hot(samples, PROTEIN)
        network = self._network.to(rows.device)
        condition = encode_files(network.graph, prompts, rows.shape[1])
        unknown = network.config.vocab_size + 1 - len(PROTEIN)
        scores: Tensor = network(F.pad(rows, (0, unknown)), **condition)
        return scores
