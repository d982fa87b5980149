"""What our own regression networks predict of a sequence; several together know their spread."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffreward.alphabets import one_hot
from diffreward.loading import check_source
from diffreward.oracles.regressor import SequenceRegressor
from diffreward.reward import Reward
from diffreward.samples import Samples


class SequenceOracle(Reward):
    """What one or several trained networks predict, their mean, in the units of their labels.

    For a network trained on a class the score is the log-odds of that class. Differentiable.
    Networks trained from several seeds agree on what the data says and less on what it does not:
    `spread` tells where. A sequence found by following such a network is outside its data sooner or
    later, so that another network, trained on other data, has to judge what was found.

    Args:
        folders: one folder that `SequenceRegressor.save_pretrained` wrote or its hub id, or
            several.
        task: number of the output.

    Raises:
        FileNotFoundError: if a folder does not exist.
        ValueError: if there is no folder, the networks differ in alphabet, length or tasks, or have
            no such task.
    """

    def __init__(self, folders: str | Sequence[str], task: int = 0) -> None:
        self.folders = (folders,) if isinstance(folders, str) else tuple(folders)
        self.task = task
        if not self.folders:
            raise ValueError("expected at least one folder of a network, got none")
        self._networks = [_load(folder) for folder in self.folders]
        kinds = {
            (network.config.alphabet, network.config.length, tuple(network.config.tasks))
            for network in self._networks
        }
        if len(kinds) > 1:
            raise ValueError(f"the networks differ in alphabet, length or tasks: {sorted(kinds)}")
        ((self.alphabet, self.length, tasks),) = kinds
        if not 0 <= task < len(tasks):
            raise ValueError(f"the tasks are 0 to {len(tasks) - 1}, {list(tasks)}; got {task}")

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        return self.members(samples).mean(0)

    def spread(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """The standard deviation over the networks, (B,) float32, >= 0; 0 of a single one."""
        return self.members(samples).std(0, correction=0)

    def members(self, samples: Samples) -> Tensor:
        """The predictions of each network, (networks, B) float32.

        Raises:
            TypeError: if the samples are no tokens.
            ValueError: if they are of another alphabet or length.
        """
        rows = one_hot(samples, self.alphabet)
        outputs = [network.to(rows.device)(rows) for network in self._networks]
        return torch.stack(outputs)[..., self.task]


def _load(folder: str) -> SequenceRegressor:
    check_source(folder, "config.json")
    with torch.random.fork_rng(devices=[]):
        # New parameters draw random numbers before the file's take their place.
        network: SequenceRegressor = SequenceRegressor.from_pretrained(folder)
    network.eval().requires_grad_(False)
    return network
