"""Rewards with the signatures of other toolkits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffreward.adapters import DDPOReward, ImscoreReward, TRLReward
from diffreward.config import instantiate, new_parser, parse
from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.reward import Reward, RewardError
from diffreward.samples import Images, Texts

PICTURES = Images(torch.rand(3, 3, 4, 4, generator=stream(0)))
TEXTS = Texts(("a cat", "", "two dogs"))
PROMPTS = ["a", "b", "c"]
MEANS = PICTURES.pixels.mean((1, 2, 3))


def brightness(factor: float = 1.0):
    """As the rewards of ddpo-pytorch are made."""

    def _fn(images, prompts, metadata):
        assert len(images) == len(prompts) == len(metadata)
        return factor * np.array(images.mean((1, 2, 3))), {"prompts": prompts}

    return _fn


def lengths(prompts, completions, **columns):
    assert columns == {"solution": "x"}
    return [len(text) if text else None for text in completions]


async def slow_lengths(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


class Scorer:
    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        return pixels.mean((1, 2, 3))[:, None]


def test_a_reward_of_ddpo_pytorch_scores_pictures() -> None:
    check_reward(DDPOReward(brightness()), PICTURES, PROMPTS)
    torch.testing.assert_close(DDPOReward(brightness())(PICTURES, PROMPTS), MEANS)
    made = DDPOReward(brightness, {"factor": 2.0})
    torch.testing.assert_close(made(PICTURES, PROMPTS), 2 * MEANS)


def test_a_reward_of_trl_scores_texts_and_may_have_no_score() -> None:
    scores = TRLReward(lengths, {"solution": "x"})(TEXTS, PROMPTS)
    assert scores[[0, 2]].tolist() == [5, 8]
    assert scores[1].isnan()


def test_coroutines_are_waited_for_also_where_a_loop_runs() -> None:
    import asyncio

    reward = TRLReward(slow_lengths)
    assert reward(TEXTS, PROMPTS).tolist() == [5, 0, 8]

    async def notebook() -> list[float]:
        return reward(TEXTS, PROMPTS).tolist()

    assert asyncio.run(notebook()) == [5, 0, 8]


def test_a_model_of_imscore_keeps_the_gradient() -> None:
    pixels = PICTURES.pixels.clone().requires_grad_()
    scores = ImscoreReward(Scorer())(Images(pixels), PROMPTS)
    torch.testing.assert_close(scores, MEANS)
    scores.sum().backward()
    assert pixels.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda *_: torch.zeros(3), "a pair of scores and info"),
        (lambda *_: (torch.zeros(2), {}), r"shape \(2,\) for 3 samples"),
        (lambda *_: ({"a": 1}, {}), "returned no numbers"),
    ],
)
def test_what_comes_back_wrong_is_said(returned, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        DDPOReward(returned)(PICTURES, PROMPTS)


def test_a_configuration_names_them_and_their_function(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def f(prompts, completions, **_):\n    return [len(c) for c in completions]\n")
    parser = new_parser("")
    parser.add_argument("--reward", type=Reward)
    given = ["--reward", "diffreward.adapters.TRLReward", f"--reward.path={file}:f"]
    reward = instantiate(parser, parse(parser, given)).reward
    assert reward(TEXTS, PROMPTS).tolist() == [5, 0, 8]


def test_rewards_of_installed_packages_are_known_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shinyrewards.py").write_text(
        "import torch\nfrom diffreward.reward import Reward\n\n"
        "class Shiny(Reward):\n    def __call__(self, samples, prompts):\n"
        "        return torch.ones(len(prompts))\n"
    )
    about = tmp_path / "shinyrewards-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: shinyrewards\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[diffreward.rewards]\nShiny = shinyrewards:Shiny\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    parser = new_parser("")
    parser.add_argument("--reward", type=Reward)
    reward = instantiate(parser, parse(parser, ["--reward", "Shiny"])).reward
    assert reward(TEXTS, PROMPTS).tolist() == [1, 1, 1]
