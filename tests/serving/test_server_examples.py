"""The examples of servers, with stand-ins for the models that cannot be run here."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diffreward.random import stream
from diffreward.reward import Function, score
from diffreward.samples import Images, Vectors, Videos

SERVERS = Path(__file__).resolve().parents[2] / "examples" / "servers"


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, name: str, judge: Any) -> None:
    """A module with a class whose instances judge by a function."""
    fake = ModuleType(module)
    setattr(fake, name, lambda *arguments, **settings: SimpleNamespace(reward=judge))
    monkeypatch.setitem(sys.modules, module, fake)


def test_hpsv3_is_asked_image_by_image_at_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def judge(*, prompts: list[str], image_paths: list[Any]) -> torch.Tensor:
        ((prompt, image),) = zip(prompts, image_paths, strict=True)
        asked.append((prompt, image.size))
        return torch.tensor([[np.asarray(image).mean(), 99.0]], dtype=torch.bfloat16)

    stand_in(monkeypatch, "hpsv3", "HPSv3RewardInferencer", judge)
    reward = Function(f"{SERVERS / 'hpsv3.py'}:score")
    levels = torch.tensor([0.0, 1.0])[:, None, None, None]
    scores = score(reward, Images(levels.expand(2, 3, 64, 64)), ["dark", "bright"])
    assert scores.tolist() == [0, 255]
    assert asked == [("dark", (448, 448)), ("bright", (448, 448))]
    score(reward, Images(torch.zeros(1, 3, 32, 64)), [""])
    assert asked[-1] == ("", (64, 32))
    with pytest.raises(TypeError, match="scores Images"):
        reward(Vectors(torch.zeros(1, 2)), [""])


def test_videoalign_gets_each_video_as_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av", reason="needs the extra video")
    sent = Videos(torch.rand(2, 5, 3, 32, 48, generator=stream(0)).round(), fps=12.5)
    sent.frames[...] = sent.frames[:, :, :1]  # grey: what 4:2:0 keeps
    seen = []

    def judge(paths: list[str], prompts: list[str], use_norm: bool) -> list[dict[str, float]]:
        assert use_norm and len(paths) == len(prompts) == 1
        with av.open(paths[0]) as container:
            assert container.streams.video[0].average_rate == 12.5
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        seen.append((np.stack(frames), prompts[0], paths[0]))
        return [{"VQ": 0.0, "MQ": 0.0, "TA": 0.0, "Overall": float(len(seen))}]

    stand_in(monkeypatch, "inference", "VideoVLMRewardInference", judge)
    reward = Function(f"{SERVERS / 'videoalign.py'}:score")
    assert score(reward, sent, ["one", "two"]).tolist() == [1, 2]
    for (frames, prompt, path), video, said in zip(
        seen, sent.uint8().numpy(), ("one", "two"), strict=True
    ):
        assert np.abs(frames.astype(int) - video).max() <= 2
        assert prompt == said and not Path(path).exists()
