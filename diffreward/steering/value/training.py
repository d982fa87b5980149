"""Value functions for `SVDD`: what can be expected of a state, learned from finished samples.

With the soft value of its states in place of the reward of their clean predictions, SVDD converges
to the tilted law as its candidates grow in number.

Source: SVDD-MC, Li et al. (2024), arXiv:2408.08252; `diffreward.steering.value.fitting` says in
what ours differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffreward.reward import RewardFunction
from diffreward.steering.drop_in.decoding import Decode
from diffreward.steering.drop_in.session import State
from diffreward.steering.value.fitting import Fit, check_scale, fit_soft_value, nats
from diffreward.steering.value.recording import Progress, record_states

WEIGHTS, NUMBERS = "value.safetensors", "value.json"


@dataclass(frozen=True)
class ValueFunction:
    """Judges states on the way: a `value` for `diffreward.steer`.

    Args:
        network: maps x and clean, (B, *event) float32, noise_to_signal, (B,), and B prompts to
            (B,): by how many nats exp(scale * reward) is expected to be above its mean.
        fit: how it came about.
    """

    network: nn.Module
    fit: Fit

    def __call__(self, state: State, prompts: Sequence[str]) -> Tensor:
        """The soft values of B states, (B,) float32, in units of reward.

        Raises:
            ValueError: if the method asks for a gradient.
        """
        if state.leaf is not None:
            raise ValueError("a ValueFunction gives no gradient: use a method without guidance")
        ratio = torch.full((len(state.x),), state.noise_to_signal, device=state.x.device)
        z = nats(self.network, state.x, state.clean[0], ratio, prompts)
        return self.fit.offset + z / self.fit.scale

    def save(self, folder: str | Path) -> None:
        """Write the weights as safetensors and the numbers as JSON."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = self.network.state_dict()
        save_file({name: w.cpu().contiguous() for name, w in weights.items()}, folder / WEIGHTS)
        (folder / NUMBERS).write_text(json.dumps(asdict(self.fit), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, network: nn.Module) -> Self:
        """Read what `save` wrote into a network that was made as the saved one was.

        Raises:
            FileNotFoundError: if the folder holds no value function.
            RuntimeError: if the network has other weights.
        """
        folder = Path(folder)
        fit = Fit(**json.loads((folder / NUMBERS).read_text()))
        network.load_state_dict(load_file(folder / WEIGHTS))
        return cls(network.eval(), fit)


def train_value(
    pipe: DiffusionPipeline,
    reward: RewardFunction,
    prompts: Sequence[str],
    network: nn.Module,
    scale: float,
    *,
    calls: int = 64,
    batch: int = 16,
    updates: int = 2000,
    rows: int = 256,
    learning_rate: float = 1e-3,
    eta: float = 1.0,
    decoder: Decode | None = None,
    seed: int = 0,
    call: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> ValueFunction:
    """Sample with a pipeline, and fit a network to the soft values of its states.

    `record_states` and `fit_soft_value` are its two halves, for several fits to the same samples.

    Args:
        pipe: any that `diffreward.steer` takes; it is not changed.
        reward: of finished samples; no others are decoded.
        prompts: taken in turn, one per call; [""] for a pipeline without prompts.
        network: as of `ValueFunction`, on the device of the pipeline; `LatentValue` will do for
            latents of images. It is changed.
        scale: that SVDD will have, in nats per unit of reward.
        calls: of the pipeline.
        batch: samples per call, at least 2.
        updates: of the network.
        rows: states per update.
        learning_rate: of AdamW, from which it falls to 0 along half a cosine.
        eta: as of `diffreward.steer`: the values are those of the chain with this noise.
        decoder: as of `diffreward.steer`.
        seed: of samples and updates.
        call: other arguments of the pipeline: those that SVDD will have.
        progress: see `Progress`.

    Raises:
        FloatingPointError: if the loss does not stay finite.
        TrainingError: if no sample has a reward, or all have the same.
        ValueError: if a number is out of its range, or the pipeline cannot be steered.
    """
    check_scale(scale)
    states = record_states(
        pipe,
        reward,
        prompts,
        calls=calls,
        batch=batch,
        eta=eta,
        decoder=decoder,
        seed=seed,
        call=call,
        progress=progress,
    )
    fit = fit_soft_value(
        states,
        network,
        scale,
        updates=updates,
        rows=rows,
        learning_rate=learning_rate,
        seed=seed,
        progress=progress,
    )
    return ValueFunction(network, fit)
