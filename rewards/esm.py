"""How natural a protein is to a masked protein language model, by its pseudo-log-likelihood.

Source: Salazar et al. (2020), ACL, arXiv:1910.14659, equation 1, with the models of Lin et al.
(2023), Science 379:1123 (ESM-2). Every residue is masked in turn; the score is the mean of
log p(residue | all others), minus the logarithm of the pseudo-perplexity. (`compute_pppl` of the
repository facebookresearch/esm reads the position beside the mask, and gives other numbers.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffreward.alphabets import PROTEIN, one_hot
from diffreward.loading import check_source
from diffreward.reward import Reward
from diffreward.samples import Samples

_ENDS = ("<cls>", "<eos>")


class ESMLikelihood(Reward):
    """The mean log-probability of the residues, in nats, at most 0. Not differentiable.

    Guessing evenly among the residues has -3.0. Repeats of few residues are easy to predict, and
    so score well without being proteins: watch the diversity. Takes L evaluations of the model per
    protein of L residues. Relaxed tokens are scored by their largest weights.

    Args:
        model: the hub id or the folder of an ESM-2 model of transformers, with its ``vocab.txt``;
            loaded by the first call, in float32, onto the device of the samples.
        rows: masked proteins that are evaluated at once.

    Raises:
        FileNotFoundError: if the folder does not exist or holds no model.
        ValueError: if rows is below 1.
    """

    def __init__(self, model: str = "facebook/esm2_t6_8M_UR50D", rows: int = 64) -> None:
        if rows < 1:
            raise ValueError(f"rows is at least 1, got {rows}")
        check_source(model, "config.json")
        # A copy in another process may have another working directory.
        self.model = str(Path(model).absolute()) if Path(model).is_dir() else model
        self.rows = rows
        self._network: Any = None
        self._vocabulary: dict[str, int] = {}

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        letters: Tensor = one_hot(samples, PROTEIN).argmax(-1)
        if self._network is None:
            self._network, self._vocabulary = _load(self.model)
        network = self._network.to(letters.device)
        residues = torch.tensor([self._vocabulary[letter] for letter in PROTEIN])
        targets = residues.to(letters.device)[letters]
        length = targets.shape[1]
        places = torch.arange(length, device=letters.device).repeat(len(targets))
        scores = []
        with torch.no_grad(), torch.autocast(letters.device.type, enabled=False):
            for chosen in torch.arange(len(places), device=letters.device).split(self.rows):
                place, target = places[chosen], targets[chosen // length]
                scores.append(self._log_probs(network, target, place))
        return torch.cat(scores).reshape(letters.shape).mean(1)

    def _log_probs(self, network: Any, targets: Tensor, places: Tensor) -> Tensor:
        """Of the residue at one place in each protein given the others, (B, L), (B,) -> (B,)."""
        rows = torch.arange(len(targets), device=targets.device)
        masked = targets.clone()
        masked[rows, places] = self._vocabulary["<mask>"]
        first, last = (
            targets.new_full((len(targets), 1), self._vocabulary[name]) for name in _ENDS
        )
        inputs = torch.cat([first, masked, last], 1)
        logits = network(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits
        found: Tensor = logits[rows, places + 1].float().log_softmax(-1)
        return found[rows, targets[rows, places]]

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the model by itself when first called.
        return {**self.__dict__, "_network": None}


def _load(model: str) -> tuple[Any, dict[str, int]]:
    """The network and the numbers of its tokens.

    Raises:
        ValueError: if the vocabulary lacks a residue, an end or the mask.
    """
    from transformers import EsmForMaskedLM, EsmTokenizer

    vocabulary = EsmTokenizer.from_pretrained(model).get_vocab()
    missing = [token for token in (*PROTEIN, *_ENDS, "<mask>") if token not in vocabulary]
    if missing:
        raise ValueError(f"the vocabulary of {model} has no {missing}")
    # New parameters draw random numbers, and would be unusable later if made in inference mode.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        network = EsmForMaskedLM.from_pretrained(model, dtype=torch.float32)
    return network.eval().requires_grad_(False), vocabulary
