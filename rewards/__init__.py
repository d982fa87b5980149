"""One file, one reward. Import as ``diffreward.rewards``; each loads when it is first used."""

import importlib
from typing import TYPE_CHECKING

if __name__ != "diffreward.rewards":
    # Under two names one module would give two unequal classes.
    raise ImportError(f"write `import diffreward.rewards`, not `import {__name__}`")

if TYPE_CHECKING:
    from diffreward.rewards.aesthetic import Aesthetic
    from diffreward.rewards.cached import Cached
    from diffreward.rewards.clip_score import ClipScore
    from diffreward.rewards.digit_alignment import DigitAlignment
    from diffreward.rewards.enformer import Enformer
    from diffreward.rewards.esm import ESMLikelihood
    from diffreward.rewards.gc_content import GCContent
    from diffreward.rewards.grelu import GReLU
    from diffreward.rewards.jpeg import JpegCompressibility, JpegIncompressibility
    from diffreward.rewards.kmers import KmerSimilarity
    from diffreward.rewards.landscape import GB1, Landscape, TFBinding
    from diffreward.rewards.motifs import Motifs
    from diffreward.rewards.mpra_dragonn import MPRADragoNN
    from diffreward.rewards.optimus import Optimus5Prime
    from diffreward.rewards.protein_properties import Hydropathy, InVivoStability, NetCharge
    from diffreward.rewards.proteinmpnn import ProteinMPNNLikelihood
    from diffreward.rewards.sentiment import Sentiment
    from diffreward.rewards.sequence_oracle import SequenceOracle
    from diffreward.rewards.site_profile import SiteProfile
    from diffreward.rewards.stability import ProteinStability
    from diffreward.rewards.uncertainty import PessimisticEnsemble, UncertaintyWeighted
    from diffreward.rewards.variant_effects import VariantEffects

_HOME = {
    "Aesthetic": "aesthetic",
    "Cached": "cached",
    "ClipScore": "clip_score",
    "DigitAlignment": "digit_alignment",
    "ESMLikelihood": "esm",
    "Enformer": "enformer",
    "GB1": "landscape",
    "GCContent": "gc_content",
    "GReLU": "grelu",
    "Hydropathy": "protein_properties",
    "InVivoStability": "protein_properties",
    "JpegCompressibility": "jpeg",
    "JpegIncompressibility": "jpeg",
    "KmerSimilarity": "kmers",
    "Landscape": "landscape",
    "MPRADragoNN": "mpra_dragonn",
    "Motifs": "motifs",
    "NetCharge": "protein_properties",
    "Optimus5Prime": "optimus",
    "PessimisticEnsemble": "uncertainty",
    "ProteinMPNNLikelihood": "proteinmpnn",
    "ProteinStability": "stability",
    "Sentiment": "sentiment",
    "SequenceOracle": "sequence_oracle",
    "SiteProfile": "site_profile",
    "TFBinding": "landscape",
    "UncertaintyWeighted": "uncertainty",
    "VariantEffects": "variant_effects",
}

__all__ = [
    "GB1",
    "Aesthetic",
    "Cached",
    "ClipScore",
    "DigitAlignment",
    "ESMLikelihood",
    "Enformer",
    "GCContent",
    "GReLU",
    "Hydropathy",
    "InVivoStability",
    "JpegCompressibility",
    "JpegIncompressibility",
    "KmerSimilarity",
    "Landscape",
    "MPRADragoNN",
    "Motifs",
    "NetCharge",
    "Optimus5Prime",
    "PessimisticEnsemble",
    "ProteinMPNNLikelihood",
    "ProteinStability",
    "Sentiment",
    "SequenceOracle",
    "SiteProfile",
    "TFBinding",
    "UncertaintyWeighted",
    "VariantEffects",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"diffreward.rewards has no {name!r}; it has {sorted(_HOME)}")
    return getattr(importlib.import_module(f"diffreward.rewards.{_HOME[name]}"), name)
