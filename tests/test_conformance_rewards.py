"""Every reward keeps the contract. A new reward adds a function and is tested with the others."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_clip
import torch
from audiobox_weights import write_audiobox
from dnsmos_graph import write_dnsmos
from silero_weights import write_silero

from diffreward.alphabets import PROTEIN
from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.reward import Constant, Reward, WeightedSum
from diffreward.rewards import (
    DNSMOS,
    PAR,
    Aesthetic,
    Asynchronous,
    AudioboxAesthetics,
    Cached,
    Clipped,
    ClipScore,
    Constrained,
    Constraint,
    Gated,
    GCContent,
    Hydropathy,
    InVivoStability,
    JpegCompressibility,
    JpegIncompressibility,
    JpegProxy,
    KmerSimilarity,
    Landscape,
    Motifs,
    NetCharge,
    PessimisticEnsemble,
    PickScore,
    Product,
    RunningStandardised,
    SoftMinimum,
    SpeechPresence,
    UncertaintyWeighted,
    WorstCase,
)
from diffreward.samples import Audio, Images, Samples, Tokens, Vectors

ASSETS = Path(__file__).parents[1] / "assets"

PROMPTS = [
    "a red seven on a blue background",
    "a green one on a white background",
    "a red seven on a blue background",
    "a yellow two on a black background",
]
SAMPLES: dict[str, Samples] = {
    "images": Images(torch.rand(4, 3, 32, 32, generator=stream(0))),
    "tokens": Tokens(torch.randint(4, (4, 12), generator=stream(1)), "ACGT"),
    "proteins": Tokens(torch.randint(20, (4, 12), generator=stream(3)), PROTEIN),
    "sites": Tokens(torch.randint(4, (4, 3), generator=stream(4)), "ACGT"),
    "sounds": Audio(0.1 * torch.randn(4, 2, 4000, generator=stream(6)), 8000),
    "vectors": Vectors(torch.randn(4, 2, generator=stream(2))),
}


def weighted_sum(folder: Path) -> Reward:
    return WeightedSum([JpegCompressibility(), Constant(3.0)], [2.0, -1.0])


def jpeg_compressibility(folder: Path) -> Reward:
    return JpegCompressibility()


def jpeg_incompressibility(folder: Path) -> Reward:
    return JpegIncompressibility(quality=50)


def uncertainty_weighted(folder: Path) -> Reward:
    return UncertaintyWeighted(JpegCompressibility(), views=3)


def uncertainty_below_a_ceiling(folder: Path) -> Reward:
    return UncertaintyWeighted(clip_score(folder), ceiling=1.0)


def pessimistic_ensemble(folder: Path) -> Reward:
    return PessimisticEnsemble([JpegCompressibility(), clip_score(folder)], 0.5)


def clip_score(folder: Path) -> Reward:
    import open_clip
    from safetensors.torch import save_file

    model = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 48,
            "layers": 1,
            "width": 16,
            "patch_size": 16,
            "head_width": 8,
        },
        "text_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    save_file(open_clip.CLIP(**model).state_dict(), folder / "open_clip_model.safetensors")
    return ClipScore(str(folder))


def clip_score_of_digits(folder: Path) -> Reward:
    if not (ASSETS / "digits-clip" / "open_clip_config.json").is_file():
        pytest.skip(f"{ASSETS / 'digits-clip'} is not here")
    return ClipScore(str(ASSETS / "digits-clip"))


def aesthetic(folder: Path) -> Reward:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.save(torch.nn.Linear(8, 1).state_dict(), folder / "head.pth")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    images = {"image_size": 48, "patch_size": 16, "projection_dim": 8, "num_attention_heads": 2}
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, **images))
    tower.save_pretrained(folder)
    return Aesthetic(str(folder / "head.pth"), str(folder))


def gc_content(folder: Path) -> Reward:
    return GCContent(0.4)


def kmer_similarity(folder: Path) -> Reward:
    (folder / "real.fasta").write_text(">a\nACGTTGCATTGACC\n")
    return KmerSimilarity(str(folder / "real.fasta"), k=2)


def motifs(folder: Path) -> Reward:
    rows = "0.7 0.1 0.1 0.1\n0.1 0.1 0.1 0.7\n0.2 0.2 0.5 0.1\n"
    (folder / "motifs.meme").write_text(f"MEME version 4\nALPHABET= ACGT\nMOTIF x\n{rows}")
    return Motifs(str(folder / "motifs.meme"), score="occupancy")


def landscape(folder: Path) -> Reward:
    return Landscape(torch.randn(64, generator=stream(5)), "ACGT")


def cached(folder: Path) -> Reward:
    return Cached(gc_content(folder), size=2)


def hydropathy(folder: Path) -> Reward:
    pytest.importorskip("Bio")
    return Hydropathy()


def in_vivo_stability(folder: Path) -> Reward:
    pytest.importorskip("Bio")
    return InVivoStability()


def net_charge(folder: Path) -> Reward:
    pytest.importorskip("Bio")
    return NetCharge()


def jpeg_proxy(folder: Path) -> Reward:
    return JpegProxy()


def pick_score(folder: Path) -> Reward:
    tiny_clip.transformers_clip(folder)
    return PickScore(str(folder), str(folder))


def asynchronous(folder: Path) -> Reward:
    return Asynchronous(JpegCompressibility(), workers=2, rows=3)


def worst_case(folder: Path) -> Reward:
    return WorstCase([JpegCompressibility(), clip_score(folder)])


def soft_minimum(folder: Path) -> Reward:
    return SoftMinimum([JpegCompressibility(), clip_score(folder)], 0.5)


def product(folder: Path) -> Reward:
    return Product([JpegIncompressibility(), JpegIncompressibility(50)])


def gated(folder: Path) -> Reward:
    return Gated(JpegCompressibility(), JpegIncompressibility(), 1.0, -100.0)


def constrained(folder: Path) -> Reward:
    return Constrained(JpegCompressibility(), [Constraint(clip_score(folder), 0.3, 1.0)])


def par(folder: Path) -> Reward:
    return PAR(JpegCompressibility(), -1.0)


def clipped(folder: Path) -> Reward:
    return Clipped(JpegCompressibility(), -2.0, 0.0)


def running_standardised(folder: Path) -> Reward:
    return RunningStandardised(JpegCompressibility())


def dnsmos(folder: Path) -> Reward:
    pytest.importorskip("onnx")
    return DNSMOS(write_dnsmos(folder))


def speech_presence(folder: Path) -> Reward:
    return SpeechPresence(write_silero(folder))


def audiobox_aesthetics(folder: Path) -> Reward:
    return AudioboxAesthetics(write_audiobox(folder))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (weighted_sum, "images"),
        (jpeg_compressibility, "images"),
        (jpeg_incompressibility, "images"),
        (uncertainty_weighted, "images"),
        (uncertainty_below_a_ceiling, "images"),
        (pessimistic_ensemble, "images"),
        (clip_score, "images"),
        (clip_score_of_digits, "images"),
        (aesthetic, "images"),
        (jpeg_proxy, "images"),
        (pick_score, "images"),
        (asynchronous, "images"),
        (worst_case, "images"),
        (soft_minimum, "images"),
        (product, "images"),
        (gated, "images"),
        (constrained, "images"),
        (par, "images"),
        (clipped, "images"),
        (running_standardised, "images"),
        (dnsmos, "sounds"),
        (speech_presence, "sounds"),
        (audiobox_aesthetics, "sounds"),
        (gc_content, "tokens"),
        (kmer_similarity, "tokens"),
        (motifs, "tokens"),
        (landscape, "sites"),
        (cached, "tokens"),
        (hydropathy, "proteins"),
        (in_vivo_stability, "proteins"),
        (net_charge, "proteins"),
    ],
)
def test_the_contract_is_kept(make: Callable[[Path], Reward], kind: str, tmp_path: Path) -> None:
    check_reward(make(tmp_path), SAMPLES[kind], PROMPTS)
