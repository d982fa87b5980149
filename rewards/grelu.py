"""Any model of gReLU as a reward, such as the enhancer oracles of DRAKES.

Source: Lal et al. (2024), gReLU, github.com/Genentech/gReLU (MIT licence); Wang et al. (2025),
DRAKES, ICLR, arXiv:2410.13643, whose reward is task 0 (HepG2) of a regressor of 200 bp.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffreward.alphabets import DNA, one_hot
from diffreward.reward import Reward
from diffreward.samples import Samples


class GReLU(Reward):
    """What a gReLU model predicts after its activation, the mean over output bins. Differentiable.

    Needs the package ``grelu``. The network is rebuilt from the checkpoint's parameters, not by
    Lightning: so that checkpoints load which lack ``data_params`` or were written by old versions.
    Models built on Enformer download its weights once more when they are rebuilt.

    Args:
        checkpoint: a Lightning checkpoint, ``.ckpt``.
        task: number of the output.
        trusted: whether the file may run code. Many checkpoints hold numpy scalars, which PyTorch
            from 2.6 on does not read from a file that may not.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if ``grelu`` is missing.
        ValueError: if the file has more in it than an untrusted file may have, or is no checkpoint
            of gReLU.
    """

    def __init__(self, checkpoint: str, task: int = 0, trusted: bool = False) -> None:
        self.task = task
        self._model = _load(Path(checkpoint).expanduser(), trusted)

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        """Map B sequences of DNA to scores, (B,) float32.

        Raises:
            TypeError: if the samples are no tokens.
            ValueError: if they are no DNA, or the model has no such task.
        """
        rows = one_hot(samples, DNA)
        outputs: Tensor = self._model.to(rows.device)(rows.movedim(2, 1))
        if not 0 <= self.task < outputs.shape[1]:
            raise ValueError(f"the tasks are 0 to {outputs.shape[1] - 1}, got {self.task}")
        return outputs[:, self.task].float().mean(-1)


def _load(path: Path, trusted: bool) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path.absolute()}")
    try:
        from grelu.lightning import LightningModel
    except ImportError:
        raise ImportError("pip install grelu to score by its models") from None
    from pickle import UnpicklingError

    try:
        state = torch.load(path, map_location="cpu", weights_only=not trusted)
    except UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and plain values; if you trust whoever made it to run "
            "code on this machine, say trusted=True"
        ) from error
    try:
        parameters = state["hyper_parameters"]
        with torch.random.fork_rng(devices=[]):
            # New parameters draw random numbers before the file's take their place.
            model = LightningModel(parameters["model_params"], parameters["train_params"])
        model.load_state_dict(state["state_dict"])
    except KeyError as error:
        raise ValueError(f"{path} is no checkpoint of gReLU: it lacks {error}") from error
    return model.eval().requires_grad_(False)
