"""One file, one reward. Import as ``diffreward.rewards``; each loads when it is first used."""

import importlib
from typing import TYPE_CHECKING

if __name__ != "diffreward.rewards":
    # Under two names one module would give two unequal classes.
    raise ImportError(f"write `import diffreward.rewards`, not `import {__name__}`")

if TYPE_CHECKING:
    from diffreward.rewards.aesthetic import Aesthetic
    from diffreward.rewards.asynchronous import Asynchronous
    from diffreward.rewards.audio_aesthetics import AudioAesthetics
    from diffreward.rewards.audiobox_aesthetics import AudioboxAesthetics
    from diffreward.rewards.cached import Cached
    from diffreward.rewards.clap_score import ClapScore
    from diffreward.rewards.clip_score import ClipScore
    from diffreward.rewards.combinations import Gated, Product, SoftMinimum, WorstCase
    from diffreward.rewards.constrained import Constrained, Constraint
    from diffreward.rewards.coverage import Coverage, Density, Precision, Recall
    from diffreward.rewards.digit_alignment import DigitAlignment
    from diffreward.rewards.dnsmos import DNSMOS
    from diffreward.rewards.enformer import Enformer
    from diffreward.rewards.esm import ESMLikelihood
    from diffreward.rewards.face_presence import FacePresence
    from diffreward.rewards.frames import PerFrame
    from diffreward.rewards.frechet import FrechetDistance
    from diffreward.rewards.gc_content import GCContent
    from diffreward.rewards.grelu import GReLU
    from diffreward.rewards.hps import HPS
    from diffreward.rewards.image_reward import ImageReward
    from diffreward.rewards.jpeg import JpegCompressibility, JpegIncompressibility
    from diffreward.rewards.jpeg_proxy import JpegProxy
    from diffreward.rewards.kmers import KmerSimilarity
    from diffreward.rewards.landscape import GB1, Landscape, TFBinding
    from diffreward.rewards.mmd import MMD
    from diffreward.rewards.motifs import Motifs
    from diffreward.rewards.motion import Motion
    from diffreward.rewards.mpra_dragonn import MPRADragoNN
    from diffreward.rewards.mps import MPS
    from diffreward.rewards.optimus import Optimus5Prime
    from diffreward.rewards.per_song import PerSampleFrechet
    from diffreward.rewards.perplexity import Perplexity
    from diffreward.rewards.pick_score import PickScore
    from diffreward.rewards.protein_properties import Hydropathy, InVivoStability, NetCharge
    from diffreward.rewards.proteinmpnn import ProteinMPNNLikelihood
    from diffreward.rewards.relative import NormalisedSum, Ranked, RunningStandardised, Standardised
    from diffreward.rewards.remote import RemoteReward
    from diffreward.rewards.sentiment import Sentiment
    from diffreward.rewards.sequence_oracle import SequenceOracle
    from diffreward.rewards.shaping import PAR, Clipped
    from diffreward.rewards.site_profile import SiteProfile
    from diffreward.rewards.speech_presence import SpeechPresence
    from diffreward.rewards.spoken_digit import SpokenDigit
    from diffreward.rewards.stability import ProteinStability
    from diffreward.rewards.temporal_consistency import TemporalConsistency
    from diffreward.rewards.text_classifier import TextClassifier
    from diffreward.rewards.text_form import Length, Pattern
    from diffreward.rewards.ultra_light_face_presence import UltraLightFacePresence
    from diffreward.rewards.uncertainty import PessimisticEnsemble, UncertaintyWeighted
    from diffreward.rewards.variant_effects import VariantEffects
    from diffreward.rewards.vendi import Vendi

_HOME = {
    "Aesthetic": "aesthetic",
    "Asynchronous": "asynchronous",
    "AudioAesthetics": "audio_aesthetics",
    "AudioboxAesthetics": "audiobox_aesthetics",
    "Cached": "cached",
    "ClapScore": "clap_score",
    "ClipScore": "clip_score",
    "Clipped": "shaping",
    "Constrained": "constrained",
    "Constraint": "constrained",
    "Coverage": "coverage",
    "DNSMOS": "dnsmos",
    "Density": "coverage",
    "DigitAlignment": "digit_alignment",
    "ESMLikelihood": "esm",
    "Enformer": "enformer",
    "FacePresence": "face_presence",
    "FrechetDistance": "frechet",
    "GB1": "landscape",
    "GCContent": "gc_content",
    "GReLU": "grelu",
    "Gated": "combinations",
    "HPS": "hps",
    "Hydropathy": "protein_properties",
    "ImageReward": "image_reward",
    "InVivoStability": "protein_properties",
    "JpegCompressibility": "jpeg",
    "JpegIncompressibility": "jpeg",
    "JpegProxy": "jpeg_proxy",
    "KmerSimilarity": "kmers",
    "Landscape": "landscape",
    "Length": "text_form",
    "MMD": "mmd",
    "MPRADragoNN": "mpra_dragonn",
    "MPS": "mps",
    "Motifs": "motifs",
    "Motion": "motion",
    "NetCharge": "protein_properties",
    "NormalisedSum": "relative",
    "Optimus5Prime": "optimus",
    "PAR": "shaping",
    "Pattern": "text_form",
    "PerFrame": "frames",
    "PerSampleFrechet": "per_song",
    "Perplexity": "perplexity",
    "PessimisticEnsemble": "uncertainty",
    "PickScore": "pick_score",
    "Precision": "coverage",
    "Product": "combinations",
    "ProteinMPNNLikelihood": "proteinmpnn",
    "ProteinStability": "stability",
    "Ranked": "relative",
    "Recall": "coverage",
    "RemoteReward": "remote",
    "RunningStandardised": "relative",
    "Sentiment": "sentiment",
    "SequenceOracle": "sequence_oracle",
    "SiteProfile": "site_profile",
    "SoftMinimum": "combinations",
    "SpeechPresence": "speech_presence",
    "SpokenDigit": "spoken_digit",
    "Standardised": "relative",
    "TFBinding": "landscape",
    "TemporalConsistency": "temporal_consistency",
    "TextClassifier": "text_classifier",
    "UltraLightFacePresence": "ultra_light_face_presence",
    "UncertaintyWeighted": "uncertainty",
    "VariantEffects": "variant_effects",
    "Vendi": "vendi",
    "WorstCase": "combinations",
}

__all__ = [
    "DNSMOS",
    "GB1",
    "HPS",
    "MMD",
    "MPS",
    "PAR",
    "Aesthetic",
    "Asynchronous",
    "AudioAesthetics",
    "AudioboxAesthetics",
    "Cached",
    "ClapScore",
    "ClipScore",
    "Clipped",
    "Constrained",
    "Constraint",
    "Coverage",
    "Density",
    "DigitAlignment",
    "ESMLikelihood",
    "Enformer",
    "FacePresence",
    "FrechetDistance",
    "GCContent",
    "GReLU",
    "Gated",
    "Hydropathy",
    "ImageReward",
    "InVivoStability",
    "JpegCompressibility",
    "JpegIncompressibility",
    "JpegProxy",
    "KmerSimilarity",
    "Landscape",
    "Length",
    "MPRADragoNN",
    "Motifs",
    "Motion",
    "NetCharge",
    "NormalisedSum",
    "Optimus5Prime",
    "Pattern",
    "PerFrame",
    "PerSampleFrechet",
    "Perplexity",
    "PessimisticEnsemble",
    "PickScore",
    "Precision",
    "Product",
    "ProteinMPNNLikelihood",
    "ProteinStability",
    "Ranked",
    "Recall",
    "RemoteReward",
    "RunningStandardised",
    "Sentiment",
    "SequenceOracle",
    "SiteProfile",
    "SoftMinimum",
    "SpeechPresence",
    "SpokenDigit",
    "Standardised",
    "TFBinding",
    "TemporalConsistency",
    "TextClassifier",
    "UltraLightFacePresence",
    "UncertaintyWeighted",
    "VariantEffects",
    "Vendi",
    "WorstCase",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"diffreward.rewards has no {name!r}; it has {sorted(_HOME)}")
    return getattr(importlib.import_module(f"diffreward.rewards.{_HOME[name]}"), name)
