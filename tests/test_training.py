"""The loop: what it leaves, how it resumes, and that it refuses what cannot work."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import small_runs
import tiny
import torch
from accelerate.state import AcceleratorState
from colours import redness
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from diffreward.algorithms.d3po import D3PO
from diffreward.algorithms.ddpo import DDPO
from diffreward.algorithms.prdp import PRDP
from diffreward.checks import TrainingError
from diffreward.evaluation import Evaluation
from diffreward.pipelines.stable_diffusion import StableDiffusion
from diffreward.policy import Full, LoRA
from diffreward.random import stream
from diffreward.reward import RewardError
from diffreward.settings import Training
from diffreward.stopping import Stopped
from diffreward.training import train


def test_a_run_leaves_what_it_promises(tmp_path: Path) -> None:
    run = small_runs.run(tmp_path)
    lines = small_runs.metrics(run.folder)
    assert [line["update"] for line in lines if line["kind"] == "update"] == [1, 2, 3, 4]
    assert [line["update"] for line in lines if line["kind"] == "evaluation"] == [0, 2, 4]
    assert lines[1]["ratio_error"] < 1e-6
    assert {p.name for p in (run.folder / "checkpoints").iterdir()} == {"000002", "000004"}
    assert len(list((run.folder / "samples" / "000004").glob("*.png"))) == 3
    assert (run.folder / "report.html").stat().st_size > 1000
    assert "redness" in (run.folder / "weights" / "README.md").read_text()
    assert run.after["reward"] != run.before["reward"]
    assert run.after["blueness"].mean == pytest.approx(-run.after["reward"].mean)


@pytest.mark.parametrize("settings", [{}, {"ema_decay": 0.5}], ids=["plain", "ema"])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    tmp_path: Path, settings: dict[str, float]
) -> None:
    small_runs.run(tmp_path, "straight", 5, **settings)
    small_runs.run(tmp_path, "resumed", 2, **settings)
    file = tmp_path / "resumed" / "metrics.jsonl"
    # What a crash may leave: a later line, a line cut off, a checkpoint half written.
    file.write_text(file.read_text() + '{"kind": "update", "update": 3}\n{"kind": "upd')
    (tmp_path / "resumed" / "checkpoints" / ".000003.writing").mkdir()
    small_runs.run(tmp_path, "resumed", 5, resume="latest", **settings)
    small_runs.assert_equal_runs(tmp_path / "straight", tmp_path / "resumed")


def test_the_batch_that_goes_through_the_network_does_not_change_the_run(tmp_path: Path) -> None:
    a, b = (small_runs.run(tmp_path, f"rows {n}", 1, DDPO(), rows=n).folder for n in (4, 9))
    # Not of the weights: Adam makes a step of full length out of a gradient that is only rounding.
    ours, theirs = small_runs.metrics(a)[1], small_runs.metrics(b)[1]
    for name in ("reward", "reward_std", "grad_norm"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3)


def test_the_plain_pipeline_draws_the_evaluation_images_with_the_lora(tmp_path: Path) -> None:
    run = small_runs.run(tmp_path, ema_decay=0.5)
    plain = tiny.stable_diffusion(tmp_path)
    plain.load_lora_weights(str(run.folder / "weights"))
    index = json.loads((run.folder / "samples" / "000004" / "index.json").read_text())
    drawn = plain(
        [item["prompt"] for item in index],
        num_inference_steps=3,
        guidance_scale=2.0,
        eta=1.0,
        generator=[stream(0, "evaluation", i) for i in range(3)],
    ).images
    for item, image in zip(index, drawn, strict=True):
        kept = Image.open(run.folder / "samples" / "000004" / item["file"])
        difference = torch.tensor(list(kept.tobytes())) - torch.tensor(list(image.tobytes()))
        assert difference.abs().max() <= 1


def test_full_fine_tuning_leaves_a_pipeline(tmp_path: Path) -> None:
    run = train(
        StableDiffusion(tiny.stable_diffusion(tmp_path), 3, guidance_scale=1.0),
        PRDP(),
        redness,
        small_runs.PROMPTS,
        Evaluation(samples=4, every=0),
        Full(),
        Training(updates=2, prompts_per_update=2, samples_per_prompt=2, output=f"{tmp_path}/run"),
    )
    loaded = StableDiffusionPipeline.from_pretrained(run.folder / "weights")
    trained = dict(run.policy.diffusion.network.named_parameters())
    for name, parameter in loaded.unet.named_parameters():
        assert torch.equal(parameter, trained[name])


@pytest.mark.parametrize("algorithm", [D3PO(inner_steps=2), PRDP(inner_steps=2), DDPO()])
def test_every_method_trains_every_adapter(tmp_path: Path, algorithm: object) -> None:
    run = small_runs.run(tmp_path, updates=2, algorithm=algorithm)  # type: ignore[arg-type]
    # The second factor of each adapter starts at zero.
    moved = {
        n: w.abs().max() > 0 for n, w in small_runs.weights(run.folder).items() if "lora_B" in n
    }
    assert moved and all(moved.values())


def test_half_precision_sees_the_same_probabilities_in_sampling_and_training(
    tmp_path: Path,
) -> None:
    # accelerate keeps one precision per process; the runs of other tests have had another.
    AcceleratorState._reset_state()
    run = small_runs.run(tmp_path, updates=2, algorithm=DDPO(), mixed_precision="bf16")
    AcceleratorState._reset_state()
    updates = [line for line in small_runs.metrics(run.folder) if line["kind"] == "update"]
    assert [line["ratio_error"] for line in updates] == [0, 0]


def test_a_termination_signal_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "run" / "metrics.jsonl"

    def terminate() -> None:
        while not (file.is_file() and '"update": 1' in file.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped):
        small_runs.run(tmp_path, updates=1000, checkpoint_every=1000)
    assert signal.getsignal(signal.SIGTERM) is before
    done = max(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert done == small_runs.metrics(tmp_path / "run")[-1]["update"] > 0
    run = small_runs.run(tmp_path, updates=done + 1, resume="latest", checkpoint_every=1000)
    assert small_runs.metrics(run.folder)[-1]["update"] == done + 1


def nothing(samples: object, prompts: list[str]) -> Tensor:
    return torch.full((len(prompts),), torch.nan)


def constant(samples: object, prompts: list[str]) -> Tensor:
    return torch.ones(len(prompts))


def scalar(samples: object, prompts: list[str]) -> Tensor:
    return torch.tensor(1.0)


@pytest.mark.parametrize(
    ("reward", "error", "message"),
    [
        (scalar, RewardError, r"scalar returned shape \(\) for 4 samples"),
        (nothing, TrainingError, "no finite score"),
        (constant, TrainingError, "same score, 1;"),
    ],
)
def test_a_reward_that_teaches_nothing_is_refused_before_the_weights_change(
    tmp_path: Path, reward: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(
            StableDiffusion(tiny.stable_diffusion(tmp_path), 3, guidance_scale=1.0),
            DDPO(),
            reward,  # type: ignore[arg-type]
            small_runs.PROMPTS,
            Evaluation(samples=4),
            training=Training(
                updates=1, prompts_per_update=2, samples_per_prompt=2, output=f"{tmp_path}/run"
            ),
        )
    assert not any(line["kind"] == "update" for line in small_runs.metrics(tmp_path / "run"))


def test_a_failed_score_is_left_out_and_counted(tmp_path: Path) -> None:
    def sometimes(samples: object, prompts: list[str]) -> Tensor:
        scores = redness(samples, prompts)  # type: ignore[arg-type]
        scores[::3] = torch.nan
        return scores

    run = train(
        StableDiffusion(tiny.stable_diffusion(tmp_path), 3, guidance_scale=1.0),
        DDPO(),
        sometimes,
        small_runs.PROMPTS,
        Evaluation(samples=4),
        LoRA(2),
        Training(updates=1, prompts_per_update=2, samples_per_prompt=3, output=f"{tmp_path}/run"),
    )
    line = small_runs.metrics(run.folder)[1]
    assert line["unscored"] == 2
    assert all(torch.isfinite(w).all() for w in small_runs.weights(run.folder).values())


def test_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    small_runs.run(tmp_path, updates=1)
    with pytest.raises(FileExistsError, match="--resume latest"):
        small_runs.run(tmp_path, updates=1)
    with pytest.raises(ValueError, match="another run"):
        small_runs.run(tmp_path, updates=2, resume="latest", algorithm=PRDP())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="no run"):
        small_runs.run(tmp_path, "mine")
