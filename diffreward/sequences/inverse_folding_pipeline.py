"""Sequences for a given backbone by masked diffusion, as a pipeline of diffusers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffreward.alphabets import PROTEIN
from diffreward.sequences.denoisers.inverse_folding import InverseFoldingDenoiser
from diffreward.sequences.pipeline import MaskedDiffusionPipeline
from diffreward.sequences.scheduler import MaskedDiffusionScheduler
from diffreward.sequences.structure import encode_files, read_distinct


class InverseFoldingPipeline(MaskedDiffusionPipeline):
    """Designs sequences that fold to a backbone. A prompt is the path of its PDB or mmCIF file.

    ``design.pdb:A`` names one chain; else all chains are designed together. Residues that lack a
    backbone atom are left out. The backbones of one call have one length.

    Args:
        denoiser: predicts amino acids; `InverseFoldingDenoiser.from_proteinmpnn` reads ProteinMPNN.
        scheduler: masks and reveals, with `vocab_size` 20.
        alphabet: the V symbols, in the order of the ids.
        length: L, for what asks before there is a prompt: chains of `MaskedDiffusion`.
        encode_once: whether a backbone is encoded with its prompt, without gradient, and the steps
            run only the decoder, a fraction of the work. Fine-tuning then trains the decoder only;
            set it to False to train the encoder too: the backbone itself is then the condition.
    """

    def __init__(
        self,
        denoiser: InverseFoldingDenoiser,
        scheduler: MaskedDiffusionScheduler,
        alphabet: str = PROTEIN,
        length: int = 100,
        encode_once: bool = True,
    ) -> None:
        super().__init__(denoiser, scheduler, alphabet, length)
        self.register_to_config(encode_once=encode_once)

    def encode_prompt(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the loop needs of each backbone, by name, each (B, ...).

        `template`, (B, L) int64, is free everywhere. The rest is what the denoiser takes: `nodes`,
        `edges` and `neighbours` (see `Encoding`), or `coordinates`, `residue_index` and `chain`.

        Args:
            prompts: paths, as `diffreward.sequences.structure.read_backbone` reads them.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if a file has no such chain, or lengths differ.
        """
        if self.config.encode_once:
            with torch.no_grad():
                condition = encode_files(self.denoiser.graph, prompts)
        else:
            backbones, which = read_distinct(prompts)
            condition = {name: x[which] for name, x in backbones.items()}
        shape = next(iter(condition.values())).shape[:2]
        encoded = {"template": torch.full(shape, self.scheduler.mask), **condition}
        # A network that is offloaded was not yet on the device.
        return {name: x.to(self._execution_device) for name, x in encoded.items()}
