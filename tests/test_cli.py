"""The command line: overrides, help, and what each mistake is answered with."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import small_runs
import torch

from diffreward.cli import main
from diffreward.config import identity, instantiate, parse, training_parser
from diffreward.embeddings.clap import ClapEmbedding
from diffreward.random import stream
from diffreward.rewards import FrechetDistance
from diffreward.samples import Audio

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_runs.write_config(tmp_path_factory.mktemp("cli"))


def test_options_override_the_file(config: Path) -> None:
    parser = training_parser()
    arguments = ["--config", str(config), "--algorithm.clip", "0.5", "--updates", "7"]
    made = instantiate(parser, parse(parser, arguments))
    assert (made.algorithm.clip, made.algorithm.step_fraction, made.updates) == (0.5, 0.7, 7)


def test_what_can_differ_on_resuming_is_not_part_of_a_run(config: Path) -> None:
    parser = training_parser()
    texts = [
        identity(parser, parse(parser, ["--config", str(config), *more]))
        for more in ([], ["--updates", "9", "--resume", "latest"], ["--algorithm.clip", "0.5"])
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name
)
def test_every_shipped_configuration_describes_a_run(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    parser = training_parser()
    instantiate(parser, parse(parser, ["--config", str(file)]))


def test_help_and_printed_configuration_explain_every_setting(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "most methods compare them" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        main(["train", "--config", str(config), "--print_config"])
    assert "step_fraction: 0.7" in capsys.readouterr().out


def test_env_names_the_versions(capsys: pytest.CaptureFixture[str]) -> None:
    main(["env"])
    assert torch.__version__.split("+")[0] in capsys.readouterr().out


# What is wrong, the options that make it so, and what the answer must say.
MISTAKES = {
    "unknown key": (["--updats", "3"], r"updats.*did you mean.*updates"),
    "unknown argument of a class": (["--algorithm.clpi", "1"], r"clpi.*did you mean.*clip"),
    "misspelt algorithm": (["--algorithm", "DPPO"], r"DPPO.*did you mean.*DDPO"),
    "misspelt reward": (["--reward", "JpegCompresibility"], r"did you mean.*JpegCompressibility"),
    "value of the wrong type": (["--updates", "many"], r"updates.*(many|int)"),
    "missing model folder": (["--diffusion.pipeline", "./nowhere"], r"no folder ./nowhere"),
    "missing reward file": (["--reward", "./nowhere.py:f"], r"no file ./nowhere.py"),
    "missing reward function": (
        ["--reward", f"{ROOT}/tests/colours.py:greenness"],
        r"greenness.*redness",
    ),
    "missing reward model": (
        ["--reward", "ClipScore", "--reward.model", "./nowhere"],
        r"./nowhere",
    ),
    "missing prompts file": (["--prompts", "./nowhere.txt"], r"no prompts file ./nowhere.txt"),
    "empty prompts file": (["--prompts", "{folder}/empty.txt"], r"empty.txt is empty"),
    "zero samples per prompt": (["--samples_per_prompt", "0"], r"samples_per_prompt.*at least 1"),
    "one sample per prompt": (["--samples_per_prompt", "1"], r"samples_per_prompt.*at least 2"),
    "word for a number of a method": (["--algorithm.clip", "much"], r"clip.*much"),
    "unknown choice of a method": (["--algorithm.scale", "most"], r"scale.*most"),
    "word for a number of a penalty": (["--algorithm.penalty.weight", "much"], r"penalty.*much"),
    "prompts and no data": (["--prompts", "null"], r"prompts or through data, got neither"),
    "a likelihood method on an ODE": (["--diffusion.eta", "0"], r"deterministic.*eta > 0"),
    "a LoRA target that matches nothing": (
        ["--adaptation.targets", "[to_quack]"],
        r"to_quack.*to_q",
    ),
    "folder of something else": (["--output", "{folder}/pipe"], r"holds something that is no run"),
    "resuming without a folder": (["--resume", "latest", "--output", "null"], r"say which run"),
    "an unknown tracker": (["--trackers", "[wandbb]"], r"wandbb"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_a_clear_answer_before_any_training(
    config: Path, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options, expected = MISTAKES[mistake]
    (config.parent / "empty.txt").write_text("\n \n")
    output = ["--output", str(config.parent / mistake.replace(" ", "_"))]
    filled = [option.replace("{folder}", str(config.parent)) for option in options]
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", str(config), *output, *filled])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert re.search(expected, message, re.DOTALL), message
    assert not list(config.parent.glob("*/metrics.jsonl"))


def command(arguments: Sequence[str], launcher: Sequence[str] = ()) -> list[str]:
    before = list(launcher) or [sys.executable]
    return [*before, str(ROOT / "train.py"), *arguments]


def test_statistics_of_sounds_and_of_texts_are_references_of_one_reward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clap = str(ROOT / "assets" / "speech-clap")
    sounds = Audio(0.1 * torch.randn(3, 1, 8000, generator=stream(0)), 8000)
    sounds.write(tmp_path / "sounds")
    (tmp_path / "texts.txt").write_text("seven\none\nthree\n")
    for embedding, media in (("ClapEmbedding", "sounds"), ("ClapTextEmbedding", "texts.txt")):
        file = tmp_path / f"{embedding}.safetensors"
        asked = ["--embedding", embedding, "--embedding.model", clap]
        main(["statistics", *asked, "--media", str(tmp_path / media), "--output", str(file)])
        assert "3 rows of 64 features" in capsys.readouterr().out
        reward = FrechetDistance(ClapEmbedding(clap), file)
        assert (reward(sounds, [""] * 3).mean() > -1e-3) == (embedding == "ClapEmbedding")
    with pytest.raises(SystemExit):
        main(["statistics", *asked, "--media", str(tmp_path / "none"), "--output", "x.safetensors"])
    assert "no files" in capsys.readouterr().err


def test_evaluation_writes_samples_with_their_scores(config: Path) -> None:
    folder = config.parent
    main([
        "evaluate", "--diffusion", "StableDiffusion", "--diffusion.pipeline", str(folder / "pipe"),
        "--diffusion.num_steps", "3", "--reward", f"{ROOT}/tests/colours.py:redness",
        "--prompts", str(folder / "prompts.txt"),
        "--samples", "5", "--output", str(folder / "evaluated"),
    ])  # fmt: skip
    index = json.loads((folder / "evaluated" / "index.json").read_text())
    assert [item["prompt"] for item in index] == small_runs.PROMPTS
    assert all(item["scores"]["reward"] is not None for item in index)


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_can_always_be_resumed(tmp_path: Path) -> None:
    config = str(small_runs.write_config(tmp_path))
    straight = ["--config", config, "--output", str(tmp_path / "straight")]
    subprocess.run(command(straight), check=True)
    killed = ["--config", config, "--output", str(tmp_path / "killed"), "--resume", "latest"]
    moments = random.Random(0)
    for _ in range(8):
        process = subprocess.Popen(command(killed))
        time.sleep(moments.uniform(6, 14))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(killed), check=True)
    small_runs.assert_equal_runs(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    config = str(small_runs.write_config(tmp_path))
    # `accelerate launch --cpu --num_processes 2` starts one process only (accelerate 1.15): its
    # launcher for several CPU processes wants MPI. torchrun starts what accelerate then joins.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for number in ("1", "2"):
        options = ["--config", config, "--output", str(tmp_path / number), "--updates", "1"]
        options += ["--algorithm.inner_steps", "1"]
        subprocess.run(
            command(options, [*launcher, "--nproc_per_node", number]),
            check=True,
            env={**os.environ, "ACCELERATE_USE_CPU": "1"},
        )
    one, two = (small_runs.metrics(tmp_path / number)[1] for number in "12")
    assert one["samples"] == two["samples"] == 12
    for name in ("reward", "reward_std", "grad_norm"):
        assert one[name] == pytest.approx(two[name], rel=1e-4)
    ours, theirs = (first_gradient(tmp_path / number) for number in "12")
    assert (ours - theirs).norm() / ours.norm() < 1e-4


def first_gradient(run: Path) -> torch.Tensor:
    """The gradient of the first step, up to a factor: Adam's first moment after it."""
    state = torch.load(run / "checkpoints" / "000001" / "state.pt", weights_only=True)
    moments = [one["exp_avg"].flatten() for one in state["optimizer"]["state"].values()]
    return torch.cat(moments)
