"""What a network of mutational effects predicts of a variant of one sequence, as fluorescence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffreward.alphabets import one_hot
from diffreward.loading import check_source
from diffreward.oracles.epistasis import GlobalEpistasis
from diffreward.reward import Reward
from diffreward.samples import Samples


class VariantEffects(Reward):
    """The prediction of a trained `GlobalEpistasis`, in the units of its labels. Differentiable.

    The network knows positions and no alignment: samples are as long as its wild type, with
    mutations and without insertions. Many mutations at once lead out of what it has seen; its curve
    is flat there and says little, so that a second network has to judge what was found.

    Args:
        folder: what `GlobalEpistasis.save_pretrained` wrote, or its hub id.
        task: number of the output.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there is no such task.
    """

    def __init__(self, folder: str, task: int = 0) -> None:
        check_source(folder, "config.json")
        self.folder, self.task = folder, task
        with torch.random.fork_rng(devices=[]):
            # New parameters draw random numbers before the file's take their place.
            network: GlobalEpistasis = GlobalEpistasis.from_pretrained(folder)
        self._network = network.eval().requires_grad_(False)
        self.alphabet, self.wild_type = network.config.alphabet, network.config.wild_type
        if not 0 <= task < len(network.unit):
            raise ValueError(f"the tasks are 0 to {len(network.unit) - 1}, got {task}")

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B samples and their B prompts to scores, (B,) float32.

        Raises:
            TypeError: if the samples are no tokens.
            ValueError: if they are of another alphabet or length.
        """
        rows = one_hot(samples, self.alphabet)
        scores: Tensor = self._network.to(rows.device)(rows)[:, self.task]
        return scores
