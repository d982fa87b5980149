"""The direction of imports: a file stands above all that it imports, and families stay apart."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = {
    "alphabets",
    "enumeration",
    "random",
    "samples",
    "transitions",
    "diffusion",
    "reward",
    "loading",
    "preprocessing",
    "schedules",
    "autoencoding",
    "pipeline_diffusion",
    "image_pipeline",
    "unmasking",
    "sequences",
    "oracles",
    "adaptive",
    "gathering",
    "set_reward",
    "audio",
    "embedding",
    "embeddings",
    "backbones",
    "frechet",
    "moments",
    "serving",
}
FLOORS: dict[str, int] = {
    "__init__": 20,
    "enumeration": 0,
    "random": 0,
    "samples": 0,
    "loading": 0,
    "settings": 0,
    "stopping": 0,
    "record": 0,
    "gathering": 0,
    "run_folder": 1,
    "averaging": 0,
    "checks": 0,
    "alphabets": 1,
    "charts": 1,
    "exhibits": 1,
    "logos": 1,
    "model_card": 1,
    "processes": 1,
    "transitions": 1,
    "preprocessing": 1,
    "reward": 1,
    "autoencoding": 1,
    "audio": 1,
    "backbones": 1,
    "embedding": 1,
    "moments": 1,
    "adaptive": 2,
    "adapters": 2,
    "serving": 2,
    "frechet": 2,
    "report": 2,
    "schedules": 2,
    "unmasking": 2,
    "diffusion": 3,
    "embeddings": 3,
    "set_reward": 3,
    "prompts": 3,
    "policy": 4,
    "feedback": 4,
    "evaluation": 4,
    "conformance": 4,
    "preferences": 4,
    "sequences": 4,
    "oracles": 4,
    "sequence_metrics": 4,
    "pipeline_diffusion": 4,
    "image_pipeline": 5,
    "steering": 4,
    "exemplars": 5,
    "penalty": 5,
    "objectives": 5,
    "contrast": 5,
    "outcomes": 5,
    "replay": 6,
    "steering_run": 6,
    "algorithm": 7,
    "inversion": 4,
    "learner": 7,
    "policy_gradient": 8,
    "matching": 8,
    "pathwise": 8,
    "algorithms": 9,
    "training": 9,
    "config": 10,
    "cli": 11,
}
FILES = [p for p in (ROOT / "diffreward").glob("**/*.py")] + [
    p for top in ("rewards", "pipelines") for p in (ROOT / top).glob("*.py")
]


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports, at run time or for types."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "diffreward":
                names |= {f"diffreward.{alias.name}" for alias in node.names}
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith("diffreward.")}


def place(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path) -> None:
    relative = path.relative_to(ROOT)
    needed = imported(path)
    if relative.parts[0] in ("rewards", "pipelines"):
        if path.name == "__init__.py":
            return  # lists what there is
        # A reward sees samples, a family sees the chain; neither sees a sibling.
        forbidden = {"rewards": {"diffusion", "transitions"}, "pipelines": {"reward"}}
        allowed = CORE - forbidden[relative.parts[0]]
        assert {place(module) for module in needed} <= allowed
        return
    here = relative.parts[1].removesuffix(".py")
    for module in needed:
        if place(module) == here and len(relative.parts) > 2:
            continue
        if here in ("__init__", "config", "cli"):
            continue
        assert FLOORS[place(module)] < FLOORS[here], f"{relative} imports {module}"


def test_every_module_has_a_floor() -> None:
    here = {
        p.relative_to(ROOT / "diffreward").parts[0].removesuffix(".py")
        for p in FILES
        if "diffreward" in p.relative_to(ROOT).parts
    }
    assert here - {"rewards", "pipelines"} <= set(FLOORS)


@pytest.mark.parametrize("name", ["rewards", "pipelines"])
def test_a_bare_import_is_refused_with_the_right_name(name: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode != 0 and f"import diffreward.{name}" in found.stderr


def test_importing_the_package_is_quick_and_loads_no_torch() -> None:
    code = "import sys, diffreward; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
