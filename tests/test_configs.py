"""Every configuration under configs/ describes a run that can start, and the papers' ones do."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from backbones import backbone, write_pdb
from diffusers import StableDiffusionXLPipeline
from jsonargparse import Namespace
from matrix import methods, tensor
from zoo import images_flux, images_transformer, sounds_stable
from zoo.images import euler, stable_diffusion_xl
from zoo.parts import entry
from zoo.videos_wan import ENTRIES as WAN

from diffreward.cli import main
from diffreward.config import instantiate, parse, training_parser
from diffreward.moments import Moments
from diffreward.prompts import read_prompts
from diffreward.samples import Images, Samples, Videos
from diffreward.sequences.denoisers.inverse_folding import InverseFoldingDenoiser
from diffreward.sequences.inverse_folding_pipeline import InverseFoldingPipeline
from diffreward.sequences.protein_oracle import ProteinMPNNOracle
from diffreward.sequences.scheduler import MaskedDiffusionScheduler
from diffreward.settings import Training
from diffreward.training import _check_parts, _prompts

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
PAPERS = [file for file in CONFIGS if file.parent.name == "papers"]
HEAD = "sac+logos+ava1-l14-linearMSE.pth"
SHRUNK: dict[str, object] = {
    "updates": 1,
    "prompts_per_update": 2,
    "rows": 4,
    "evaluation.samples": 2,
    "evaluation.every": 0,
    "mixed_precision": "no",
    "diffusion.num_steps": 10,
}
"""What makes a run small enough for a test."""
FLOAT = {"diffusion.dtype": "float32"}
SQUARE = FLOAT | {"diffusion.height": 16, "diffusion.width": 16}
SIZES: dict[str, dict[str, object]] = {
    "MaskedDiffusion": {},
    "StableDiffusion": FLOAT,
    "StableDiffusionXL": SQUARE,
    "StableDiffusion3": FLOAT | {"diffusion.height": 32, "diffusion.width": 32},
    "StableAudio": FLOAT | {"diffusion.seconds": "null"},
    "Flux": SQUARE | {"diffusion.tokens": 24},
    "Wan": SQUARE | {"diffusion.num_frames": 9},
}
"""What fits the tiny pipeline of each family."""

every_config = pytest.mark.parametrize(
    "file", CONFIGS, ids=lambda file: str(file.relative_to(ROOT / "configs"))
)
every_paper = pytest.mark.parametrize("file", PAPERS, ids=lambda file: file.stem)


def tiny_pipeline(family: str, folder: Path) -> Any:
    """A pipeline of the real classes."""
    builders = {
        "MaskedDiffusion": inverse_folding,
        "StableDiffusion": tiny.stable_diffusion,
        "StableDiffusionXL": entry(StableDiffusionXLPipeline, stable_diffusion_xl, euler).build,
    }
    flows = [*images_transformer.ENTRIES, *images_flux.ENTRIES, *sounds_stable.ENTRIES, *WAN]
    builders |= {made.name.removesuffix("Pipeline"): made.build for made in flows}
    return builders[family](folder)


def inverse_folding(folder: Path) -> InverseFoldingPipeline:
    """A small one; the oracles and the backbone that its configuration names are written."""
    proteins = folder / "megascale"
    for name in ("reward_oracle", "evaluation_oracle"):
        ProteinMPNNOracle(hidden=16, layers=1, neighbours=4).save_pretrained(proteins / name)
    write_pdb(proteins / "backbone.pdb", backbone(7)["coordinates"][0], "G" * 7)
    denoiser = InverseFoldingDenoiser(hidden=16, layers=1, neighbours=4)
    return InverseFoldingPipeline(denoiser, MaskedDiffusionScheduler(20), length=7)


def picture(folder: Path, shade: float) -> bytes:
    """The bytes of an image file."""
    (name,) = Images(torch.full((1, 3, 16, 16), shade)).write(folder)
    return (folder / name).read_bytes()


def write_preferences(folder: Path) -> None:
    """Pairs where the configurations have theirs: those of the hub in a folder of its name."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    columns = {
        "caption": ["a cat", "a dog"],
        "jpg_0": [picture(folder, 0.2), picture(folder, 0.4)],
        "jpg_1": [picture(folder, 0.6), picture(folder, 0.8)],
        "label_0": [1.0, 0.0],
        "label_1": [0.0, 1.0],
        "has_label": [True, True],
    }
    datasets.Dataset.from_dict(columns).save_to_disk(folder / "yuvalkirstain" / "pickapic_v2")
    clips = folder / "video_preferences"
    Videos(torch.rand(4, 9, 3, 16, 16)).write(clips)
    rows = "a cat,000.gif,001.gif\na dog,002.gif,003.gif\n"
    (clips / "index.csv").write_text("prompt,winner,loser\n" + rows)


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the repository's files, and tiny stand-ins for what is downloaded."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("assets", "configs"):
        (folder / name).symlink_to(ROOT / name)
    torch.save({"weight": torch.ones(1, 8), "bias": torch.zeros(1)}, folder / HEAD)
    Moments.of(torch.randn(8, 4)).save(folder / "exemplars.safetensors")
    write_preferences(folder)
    for family, source in sorted(set(map(model_of, PAPERS))):
        if not (folder / source).exists():
            tiny_pipeline(family, folder).save_pretrained(folder / source)
    return folder


@pytest.fixture
def workplace(brought: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the working folder."""
    monkeypatch.chdir(brought)
    return brought


def model_of(file: Path) -> tuple[str, str]:
    """The family and the hub id of a configuration's model."""
    model = yaml.safe_load(file.read_text())["diffusion"]
    return model["class_path"], model["init_args"]["pipeline"]


def made_of(file: Path) -> Namespace:
    parser = training_parser()
    return instantiate(parser, parse(parser, ["--config", str(file)]))


@every_config
def test_a_configuration_describes_a_run_whose_parts_fit(file: Path, workplace: Path) -> None:
    made = made_of(file)
    seen = _prompts(made.prompts, made.data)
    judged = made.evaluation.prompts
    assert seen and (judged is None or read_prompts(judged))
    settings = Training(**{field.name: made[field.name] for field in fields(Training)})
    _check_parts(made.diffusion, made.algorithm, settings, made.data)


def test_every_target_of_an_adapter_is_a_layer(workplace: Path) -> None:
    # Of any network: the tiny one of Stable Diffusion 3 has no block but the last, which lacks one.
    files = {model_of(file): file for file in PAPERS}
    networks = [made_of(file).diffusion.network for file in files.values()]
    layers = [f".{name}" for network in networks for name, _ in network.named_modules()]
    for file in CONFIGS:
        adapter = yaml.safe_load(file.read_text())["adaptation"]
        given = {} if adapter == "Full" else adapter.get("init_args", {})
        missing = [
            t
            for t in given.get("targets", [])
            if not any(name.endswith(f".{t}") for name in layers)
        ]
        assert missing == [], file.name


def test_every_method_has_a_configuration_of_its_paper() -> None:
    named = {yaml.safe_load(file.read_text())["algorithm"]["class_path"] for file in PAPERS}
    assert named == {method.__name__ for method in methods()}


def test_every_configuration_and_method_is_in_the_table_of_methods() -> None:
    table = (ROOT / "docs" / "methods.md").read_text()
    methods = (ROOT / "diffreward" / "algorithms").glob("[!_]*.py")
    names = [file.name for file in PAPERS] + [f"algorithms/{file.name}" for file in methods]
    assert [name for name in names if f"{name})" not in table] == []


def test_prompt_files_have_no_line_twice() -> None:
    for file in (ROOT / "assets" / "prompts").glob("*.txt"):
        lines = file.read_text().splitlines()
        assert len(set(lines)) == len(lines), file.name


def test_held_out_animals_are_not_trained_on() -> None:
    folder = ROOT / "assets" / "prompts"
    for name in ("animals", "animal_paintings"):
        trained, judged = (read_prompts(folder / f"{name}{end}.txt") for end in ("", "_heldout"))
        assert len(trained) == 45 and not set(trained) & set(judged)


def brightness(samples: Samples, prompts: list[str]) -> torch.Tensor:
    """Of all media, differentiable; in nats that even neighbouring samples differ by."""
    values = tensor(samples).float()
    weights = torch.linspace(0.5, 1.5, values[0].numel(), device=values.device)
    return 1e4 * (values.flatten(1) * weights).mean(1)


@pytest.mark.slow
@every_paper
def test_the_run_of_a_paper_trains(file: Path, workplace: Path, tmp_path: Path) -> None:
    """With a tiny pipeline, and all that is large made small."""
    family, _ = model_of(file)
    asked = yaml.safe_load(file.read_text()).get("samples_per_prompt", 2)
    given = SHRUNK | SIZES[family] | {"samples_per_prompt": min(asked, 3), "output": tmp_path}
    given["reward"] = f"{__file__}:brightness"
    main(["train", "--config", str(file), *(f"--{name}={value}" for name, value in given.items())])
    assert (tmp_path / "weights").is_dir()
