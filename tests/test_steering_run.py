"""`diffreward steer` on a tiny pipeline: what it writes, how it goes on, what it refuses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDPMPipeline, DDPMScheduler, StableDiffusionPipeline, UNet2DModel
from PIL import Image

from diffreward.cli import main
from diffreward.config import METHODS, with_method_class
from diffreward.outcomes import Outcome, mean, progress
from diffreward.steering import SteeringMethod

PROMPTS = ["a red cat", "a dog", "a photo of a cat", "blue on red", "a cat on a dog"]
CALL = {"num_inference_steps": 3, "guidance_scale": 2.0}
REWARD = """
import torch
from diffreward.samples import images
def redness(samples, prompts):
    pixels = images(samples)
    scores = (pixels[:, 0] - pixels[:, 2]).mean((1, 2))
    return scores.masked_fill(torch.tensor(["unspeakable" in p for p in prompts]), torch.nan)
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline, a reward and prompts."""
    folder = tmp_path_factory.mktemp("steer")
    tiny.stable_diffusion(folder).save_pretrained(folder / "pipe")
    (folder / "reward.py").write_text(REWARD)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


def steer(shared: Path, output: Path, *more: str, method: str = "best-of-n") -> None:
    """Run the command; later options override earlier ones."""
    call = [option for name, value in CALL.items() for option in (f"--call.{name}", str(value))]
    main([
        "steer", "--pipeline", f"{shared}/pipe", "--reward", f"{shared}/reward.py:redness",
        "--method", method, "--method.particles", "3", "--prompts", f"{shared}/prompts.txt",
        "--out", str(output), *call, *more,
    ])  # fmt: skip


def lines(output: Path) -> list[dict[str, Any]]:
    """The results without what the clock says."""
    found = map(json.loads, (output / "results.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: Any, **keywords: Any) -> str:
    """What the command says to a mistake."""
    with pytest.raises(SystemExit) as stop:
        steer(*arguments, **keywords)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_one_particle_is_what_the_plain_pipeline_makes_of_the_seed_in_the_results(
    shared: Path, tmp_path: Path
) -> None:
    steer(shared, tmp_path, "--method.particles", "1", "--batch", "2")
    pipe = StableDiffusionPipeline.from_pretrained(shared / "pipe", safety_checker=None)
    found = lines(tmp_path)
    assert [line["prompt"] for line in found] == PROMPTS
    assert [line["file"] for line in found] == [f"0000{i}.png" for i in range(5)]
    assert len({line["seed"] for line in found}) == 5
    for line in found:
        generator = torch.Generator().manual_seed(line["seed"])
        plain = pipe(line["prompt"], generator=generator, **CALL).images[0]
        ours = np.asarray(Image.open(tmp_path / line["file"]), dtype=int)
        # A batch of two rounds in another way, by one 8-bit level at most.
        assert abs(ours - np.asarray(plain, dtype=int)).max() <= 1
        red, _, blue = np.asarray(plain).mean((0, 1)) / 255
        assert line["reward"] == line["mean_reward"] == pytest.approx(red - blue, abs=4e-3)


def test_each_prompt_pays_for_its_particles(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steer(shared, tmp_path, "--batch", "2")
    for line in lines(tmp_path):
        assert (line["network_rows"], line["scored_rows"]) == (9, 3)
        # By nearly equal rewards at scale 1.
        assert line["ess"] == pytest.approx(3, abs=1e-3)
        assert line["reward"] > line["mean_reward"]
    said = capsys.readouterr().out
    assert "45 network rows, 15 samples scored" in said and f"{tmp_path}/gallery.html" in said
    assert (tmp_path / "gallery.html").is_file()


@pytest.mark.parametrize("method", ["best-of-n", "svdd", "noise-search"])
def test_the_samples_do_not_depend_on_the_batch(shared: Path, tmp_path: Path, method: str) -> None:
    for batch in ("1", "2"):
        steer(shared, tmp_path / batch, "--batch", batch, method=method)
    for one, two in zip(lines(tmp_path / "1"), lines(tmp_path / "2"), strict=True):
        texts = [{k: v for k, v in line.items() if isinstance(v, str)} for line in (one, two)]
        assert texts[0] == texts[1] and one["seed"] == two["seed"]
        # Pictures have 8-bit levels: 1e-4 of the mean is some 7 of 256 pixels, one level away.
        for name in ("reward", "mean_reward", "ess", "network_rows", "scored_rows"):
            assert one[name] == pytest.approx(two[name], abs=1e-4)


def test_a_run_goes_on_after_the_last_whole_line(shared: Path, tmp_path: Path) -> None:
    steer(shared, tmp_path, method="fk")
    straight, file = lines(tmp_path), tmp_path / "results.jsonl"
    whole = file.read_text().splitlines(keepends=True)
    file.write_text("".join(whole[:3]) + whole[3][:20])
    for name in ("00000.png", "00004.png"):
        (tmp_path / name).unlink()
    steer(shared, tmp_path, method="fk")
    assert lines(tmp_path) == straight
    assert file.read_text().splitlines(keepends=True)[:3] == whole[:3]
    # What has a line is not drawn again.
    assert (tmp_path / "00004.png").is_file() and not (tmp_path / "00000.png").is_file()


def test_a_run_goes_on_with_more_prompts_and_other_batches_only(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steer(shared, tmp_path, "--prompts", "[a cat, a dog]")
    steer(shared, tmp_path, "--prompts", "[a cat, a dog, red]", "--batch", "3", "--rows", "2")
    assert [line["number"] for line in lines(tmp_path)] == [0, 1, 2]
    other = ("--prompts", "[a cat, blue, red]")
    assert "line 2 of" in (said := refusal(capsys, shared, tmp_path, *other))
    assert "'a dog'" in said and "'blue'" in said
    said = refusal(capsys, shared, tmp_path, "--seed", "5", "--call.guidance_scale", "3.0")
    assert "holds another run" in said
    assert "'seed: 0'" in said and "'seed: 5'" in said and "guidance_scale: 3.0" in said
    (tmp_path / "config.yaml").unlink()
    assert "holds something that is no run" in refusal(capsys, shared, tmp_path)


def test_the_order_of_call_arguments_does_not_make_another_run(
    shared: Path, tmp_path: Path
) -> None:
    more = ["--call.height", "16", "--call.eta", "0.5"]
    steer(shared, tmp_path, "--prompts", "[red]", *more)
    steer(shared, tmp_path, "--prompts", "[red]", *more[2:], *more[:2])
    assert len(lines(tmp_path)) == 1


def test_a_prompt_that_fails_is_named_and_takes_no_other_with_it(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["--prompts", "[a cat, unspeakable, a dog]"]
    for _ in range(2):  # The second time there is nothing left to do, and the failure is said.
        with pytest.raises(SystemExit) as stop:
            steer(shared, tmp_path, *prompts, "--batch", "3")
        assert stop.value.code == 1
        said = capsys.readouterr().err
        assert "prompt 1, 'unspeakable'" in said and "1 of 3 prompts failed" in said
    steer(shared, tmp_path / "alone", "--prompts", "[a cat]")
    first, failed, last = lines(tmp_path)
    assert first == lines(tmp_path / "alone")[0] and last["file"] == "00002.png"
    assert failed["reward"] is None and "no score" in failed["failure"]


# What is wrong, the options that make it so, and what the answer must say.
MISTAKES: dict[str, tuple[Sequence[str], str]] = {
    "misspelt argument of the call": (
        ["--call.num_inference_step", "3"],
        "did you mean ['num_inference_steps'",
    ),
    "argument that the run gives": (["--call.prompt", "red"], "prompt is not free"),
    "several samples of a prompt": (["--call.num_images_per_prompt", "2"], "is not free"),
    "missing pipeline": (["--pipeline", "./nowhere"], "there is no folder ./nowhere"),
    "misspelt method": (["--method", "best_of_n"], "did you mean ['best-of-n'"),
    "misspelt setting of the method": (["--method.particle", "3"], "did you mean ['particles'"),
    "no prompts per call": (["--batch", "0"], "got batch 0"),
    "no prompts": (["--prompts", "./nowhere.txt"], "there is no prompts file ./nowhere.txt"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_before_anything_is_written(
    shared: Path, tmp_path: Path, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options, expected = MISTAKES[mistake]
    assert expected in refusal(capsys, shared, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_every_method_has_a_short_name() -> None:
    assert set(METHODS.values()) == {cls.__name__ for cls in SteeringMethod.__subclasses__()}
    given = ["--method=svdd", "--method", "beam", "--method.help", "fk", "--out", "fk"]
    expected = ["--method=SVDD", "--method", "BeamSearch", "--method.help", "FKSteering"]
    assert with_method_class(given) == [*expected, "--out", "fk"]


def test_a_pipeline_without_prompts_draws_a_sample_per_line(shared: Path, tmp_path: Path) -> None:
    net = UNet2DModel(
        8,
        norm_num_groups=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    DDPMPipeline(net, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    main([
        "steer", "--pipeline", f"{tmp_path}/ddpm", "--reward", f"{shared}/reward.py:redness",
        "--method", "fk", "--method.particles", "2", "--prompts", "[one, two, three]",
        "--batch", "2", "--call.num_inference_steps", "4", "--out", f"{tmp_path}/out",
    ])  # fmt: skip
    assert [line["network_rows"] for line in lines(tmp_path / "out")] == [8, 8, 8]
    pictures = [np.asarray(Image.open(tmp_path / "out" / f"0000{i}.png")) for i in range(3)]
    assert pictures[0].shape == (8, 8, 3) and not (pictures[0] == pictures[1]).all()


def test_progress_counts_what_failed() -> None:
    outcomes = [Outcome(0, "a", 1, reward=1.0), Outcome(1, "b", 2, reward=3.0)]
    assert progress(outcomes) == "reward 2"
    assert progress([*outcomes, Outcome(2, "c", 3, failure="NaN")]) == "reward 2, 1 failed"
    found = mean([1.0, 3.0, None])
    assert (found.mean, found.error, found.n) == (2.0, pytest.approx(1.0), 2)
