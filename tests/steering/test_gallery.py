"""The figure and the page of a steered call, against results that are written down by hand."""

import base64
import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import stable_diffusion
from torch import Tensor

from diffreward.pipelines.gaussian_mixture import (
    GaussianMixture,
    GaussianMixtureDiffusion,
    LinearReward,
)
from diffreward.samples import Audio, Images, Samples, Texts, Vectors, Videos, images
from diffreward.steering import SVDD, BestOfN, FKSteering, Steered, gallery, steer_diffusion
from diffreward.steering.drop_in import steer
from diffreward.steering.lineage import Lineage, ancestry, junctions, selections
from diffreward.steering.result import Cost
from diffreward.steering.smc import Cloud

# Three particles and four moves: at the second and the fourth, two of them are replaced.
ANCESTORS = torch.tensor([[0, 1, 2], [2, 1, 1], [0, 1, 2], [1, 1, 0]])
LINE = [[1, 1, 2], [1, 1, 2], [1, 1, 0], [1, 1, 0], [0, 1, 2]]
DEAD, NONE = -math.inf, math.nan


def by_hand(
    samples: Samples,
    prompts: Sequence[str] = ("a red seven",),
    rewards: Sequence[float] = (0.75, 0.25, NONE),
    log_weights: Sequence[float] = (0.0, 0.0, DEAD),
) -> Steered:
    """Every prompt has these rewards, the ancestors above, and particle 0 as the chosen one."""
    systems = len(prompts)
    on_the_way = torch.tensor([[1.0, 2.0, 3.0]]).double().expand(systems, 3)
    log_w = torch.tensor([log_weights]).double().expand(systems, 3)
    chosen = torch.zeros(systems, dtype=torch.int64)
    cloud = Cloud(
        None,
        log_w,
        torch.full((systems,), 1.5).double(),
        torch.tensor([3.0, 1.25, 3.0, 1.5, 2.0])[:, None].expand(5, systems),
        ANCESTORS[:, None].expand(4, systems, 3),
    )
    return Steered(
        tuple(prompts),
        samples[torch.arange(systems) * 3 + chosen],
        chosen,
        samples,
        torch.tensor([rewards]).double().expand(systems, 3),
        ((1, on_the_way), (3, on_the_way)),
        cloud,
        torch.full((systems,), 7),
        Cost(1234, 56, 1.5),
        None,
    )


def points(n: int) -> Vectors:
    return Vectors(torch.arange(2.0 * n).reshape(n, 2))


def page_of(steered: Steered, folder: Path) -> str:
    return steered.write_html(folder / "page.html").read_text(encoding="utf-8")


def axes_of(steered: Steered) -> dict[str, Any]:
    return {axes.get_label(): axes for axes in steered.plot().axes}


def figures(page: str) -> list[str]:
    return re.findall(r"<figure.*?</figure>", page, re.DOTALL)


def test_the_ancestors_of_finished_particles_are_followed_back() -> None:
    assert ancestry(ANCESTORS).tolist() == LINE
    assert ancestry(ANCESTORS[:0]).tolist() == [[0, 1, 2]]


def test_particles_without_living_descendants_are_told_from_the_others() -> None:
    # Particle 2 has died at the end, and with it its ancestors 0 (states 2, 3) and 2 (0, 1).
    lineage = Lineage.of(by_hand(points(3)), 0)
    alone, two = [False, True, False], [True, True, False]
    assert lineage.surviving(range(5)).tolist() == [alone, alone, alone, alone, two]


def test_only_states_where_particles_are_replaced_are_drawn_and_both_ends() -> None:
    assert junctions(ANCESTORS, 10) == [0, 1, 3, 4]
    assert junctions(torch.arange(3).expand(1000, 3), 10) == [0, 1000]
    every = junctions(torch.zeros(1000, 3, dtype=torch.int64), 10)
    assert (len(every), every[0], every[-1]) == (10, 0, 1000)


def test_a_selection_at_the_first_state_counts() -> None:
    assert selections(ANCESTORS) == [1, 3]
    assert selections(ANCESTORS[1:]) == [0, 2]


def test_ancestors_between_states_that_are_drawn_are_composed() -> None:
    # Drawn are the states 0 and 1000; in between, every particle descends from its neighbour.
    shift = torch.tensor([1, 2, 0]).expand(1000, 3)
    assert ancestry(shift)[0].tolist() == [(n + 1000) % 3 for n in range(3)]


def test_the_figure_shows_the_rewards_of_the_chosen_lineage() -> None:
    axes = axes_of(by_hand(points(3)))
    lines = {line.get_label(): line for line in axes["reward"].lines}
    # The chosen particle 0 was particle 1 up to the last move.
    assert lines["chosen"].get_xydata().tolist() == [[1, 2.0], [3, 2.0], [4, 0.75]]
    assert lines["mean"].get_ydata().tolist() == [2.0, 2.0, 0.5]
    assert lines["best"].get_ydata().tolist() == [3.0, 3.0, 0.75]
    assert axes["ess"].lines[0].get_ydata().tolist() == [3.0, 1.25, 3.0, 1.5, 2.0]
    assert axes["ess"].lines[1].get_xydata().tolist() == [[1, 1.25], [3, 1.5]]
    crosses = [line for line in axes["lineage"].lines if line.get_marker() == "x"]
    assert [line.get_xydata().tolist() for line in crosses] == [[[4, 2]]]


def test_the_tree_joins_every_particle_to_the_one_that_it_came_from() -> None:
    tree = axes_of(by_hand(points(3)))["lineage"]
    drawn = {
        (int(x[0]), int(y[0]), int(x[-1]), int(y[-1]))
        for x, y in ((line.get_xdata(), line.get_ydata()) for line in tree.lines)
        if len(x) == 3 and x[0] != x[-1]
    }
    states = [0, 1, 3, 4]
    parents = [[0, 1, 2], [2, 1, 1], [1, 1, 0]]
    assert drawn == {
        (states[i], parents[i][n], states[i + 1], n) for i in range(3) for n in range(3)
    }


def test_a_prompt_that_does_not_exist_has_no_figure() -> None:
    with pytest.raises(IndexError):
        by_hand(points(3)).plot(1)


def test_particles_are_ordered_by_reward_and_the_chosen_one_is_framed(tmp_path: Path) -> None:
    steered = by_hand(points(3), rewards=(0.25, 0.75, 0.5), log_weights=(0.0, 0.0, 0.0))
    shown = figures(page_of(steered, tmp_path))
    assert [re.findall(r"<b>(.*?)</b>", one) for one in shown] == [
        ["0.7500"],
        ["0.5000"],
        ["0.2500"],
    ]
    assert [re.findall(r"<pre>(.*?)</pre>", one) for one in shown] == [["2 3"], ["4 5"], ["0 1"]]
    assert ['class="chosen"' in one for one in shown] == [False, False, True]
    assert all("weight 0.333" in one for one in shown)


@pytest.mark.parametrize(("reward", "word"), [(NONE, "no score"), (9.0, "died on the way")])
def test_dead_particles_come_last_and_are_marked(reward: float, word: str, tmp_path: Path) -> None:
    weights = (0.0, DEAD, 0.0)
    steered = by_hand(points(3), rewards=(0.25, reward, 0.75), log_weights=weights)
    shown = figures(page_of(steered, tmp_path))
    assert [re.findall(r"<pre>(.*?)</pre>", one) for one in shown] == [["4 5"], ["0 1"], ["2 3"]]
    assert [word in one for one in shown] == ['class="dead"' in one for one in shown]
    assert word in shown[-1] and "weight 0<" in shown[-1]


def test_costs_and_what_became_of_each_prompt_are_stated(tmp_path: Path) -> None:
    page = page_of(by_hand(points(6), ["a", "b"]), tmp_path)
    stated = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)
    assert stated[:8] == [
        ("steps", "4"),
        ("scored on the way", "2 states, 1 to 3"),
        ("selections", "4"),
        ("lowest ESS", "1.2 of 3"),
        ("failed scores", "14"),
        ("denoiser rows", "1234"),
        ("scored samples", "56"),
        ("time", "1.5 s"),
    ]
    assert stated[8:12] == [
        ("lowest ESS", "1.2 of 3"),
        ("noises that survive", "1 of 3"),
        ("failed scores", "7"),
        ("log-evidence", "1.500 nats"),
    ]
    assert "samples score 0.7500, all finished particles 0.5000 on average" in page


def test_a_search_has_no_evidence(tmp_path: Path) -> None:
    steered = by_hand(points(3))
    page = page_of(replace(steered, cloud=replace(steered.cloud, log_evidence=None)), tmp_path)
    assert "— (a search)" in page


def test_images_are_found_in_the_page_as_they_are(tmp_path: Path) -> None:
    pixels = torch.randint(256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255
    page = page_of(by_hand(Images(pixels), rewards=(0.25, 0.75, NONE)), tmp_path)
    found = [re.findall(r'src="data:image/png;base64,(.*?)"', one) for one in figures(page)]
    for row, (content,) in zip((1, 0, 2), found, strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(content)))
        assert shown.tobytes() == bytes(Images(pixels).uint8()[row].flatten().tolist())


def test_large_images_are_scaled_down(tmp_path: Path) -> None:
    page = page_of(by_hand(Images(torch.rand(3, 3, 600, 300))), tmp_path)
    contents = re.findall(r'src="data:image/jpeg;base64,(.*?)"', figures(page)[0])
    assert Image.open(io.BytesIO(base64.b64decode(contents[0]))).size == (128, 256)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (Videos(torch.rand(3, 4, 3, 8, 8)), 'src="data:image/gif;base64,R0lGOD'),
        (Audio(torch.rand(3, 1, 100), 8000), 'src="data:audio/wav;base64,UklGR'),
        (Texts(("one <b>", "two <b>", "three <b>")), "one &lt;b&gt;</pre>"),
        (Vectors(torch.tensor([[1.0, 2.0]]).expand(3, 2)), "<pre>1 2</pre>"),
    ],
    ids=["videos", "audio", "texts", "vectors"],
)
def test_samples_of_any_kind_are_shown(samples: Samples, expected: str, tmp_path: Path) -> None:
    assert expected in figures(page_of(by_hand(samples), tmp_path))[0]


def test_all_pictures_of_a_video_are_in_the_page(tmp_path: Path) -> None:
    page = page_of(by_hand(Videos(torch.rand(3, 4, 3, 8, 8))), tmp_path)
    contents = re.findall(r'src="data:image/gif;base64,(.*?)"', figures(page)[0])
    assert Image.open(io.BytesIO(base64.b64decode(contents[0]))).n_frames == 4


def test_user_text_is_escaped(tmp_path: Path) -> None:
    attack = "</summary></title>\"'><script>alert(1)</script>"
    page = page_of(by_hand(Images(torch.rand(3, 3, 8, 8)), [attack]), tmp_path)
    assert "<script" not in page
    # The heading of the prompt, and what stands for each of three images.
    assert page.count("&lt;script&gt;") == 4


def test_nothing_is_loaded_from_outside(tmp_path: Path) -> None:
    page = page_of(by_hand(Images(torch.rand(3, 3, 8, 8))), tmp_path)
    links = re.findall(r"""(?:src|href|data|action)\s*=\s*["']?([^"'\s>]+)""", page)
    assert links
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert not re.search(r"url\((?!#)|@import|<script|<link|<iframe", page)


def test_charts_take_their_colours_from_the_page(tmp_path: Path) -> None:
    (chart,) = re.findall(r"<svg.*</svg>", page_of(by_hand(points(3)), tmp_path), re.DOTALL)
    assert {"muted", "line", "chosen", "best"} == set(re.findall(r"var\(--(\w+)\)", chart))
    assert not re.search(r"#[0-9a-f]{6}\b", chart.replace("#000000", ""))


def test_what_does_not_fit_is_said_and_the_chosen_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = Texts(tuple("x" * 40 for _ in range(6)))
    monkeypatch.setattr(gallery, "_BUDGET", 100)
    shown = figures(page_of(by_hand(samples, ["a", "b"]), tmp_path))
    assert ["too large for this page" in one for one in shown] == [False, True, True] * 2


def test_many_prompts_are_folded(tmp_path: Path) -> None:
    prompts = [f"prompt {i}" for i in range(5)]
    page = page_of(by_hand(points(15), prompts), tmp_path)
    assert (page.count("<details"), page.count("<details open")) == (5, 1)
    assert page_of(by_hand(points(3)), tmp_path).count("<details open") == 1
    assert all(f">{prompt}</span>" in page for prompt in prompts)


def world(steps: int) -> GaussianMixtureDiffusion:
    return GaussianMixtureDiffusion(GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], 0.5), steps)


@pytest.mark.parametrize(
    "method", [FKSteering(5, 4.0, interval=2), SVDD(3, 2.0), BestOfN(4), FKSteering(1)]
)
def test_every_method_on_an_exact_world_has_a_page(method, tmp_path: Path) -> None:
    steered = steer_diffusion(world(8), LinearReward([1.0]), ["", "b"], method)
    page = page_of(steered, tmp_path)
    assert len(figures(page)) == 2 * method.settings().particles
    assert "no prompt" in page
    assert page.count('class="chosen"') == 2


def test_a_long_way_makes_a_small_page(tmp_path: Path) -> None:
    steered = steer_diffusion(world(900), LinearReward([1.0]), ["a"], SVDD(16, 2.0))
    assert len(steered.history) == 900
    assert len(page_of(steered, tmp_path)) < 8e5


def test_a_steered_pipeline_has_a_page(tmp_path: Path) -> None:
    def red(samples: Samples, prompts: Sequence[str]) -> Tensor:
        return images(samples)[:, 0].mean((1, 2))

    pipe = stable_diffusion(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    steered = steer(pipe, red, FKSteering(3, 1e4, interval=1))
    steered(["a cat", "a dog"], num_inference_steps=4, height=16, width=16)
    page = page_of(steered.last, tmp_path)
    rewards = [float(x) for x in re.findall(r"<b>(.*?)</b>", page)]
    expected = steered.last.rewards.sort(1, descending=True).values.flatten()
    assert rewards == pytest.approx(expected.tolist(), abs=1e-3)
    assert page.count("data:image/png;base64,") == 2 * (3 + 1)
    assert len(steered.last.plot(1).axes) == 3


def test_matplotlib_is_left_as_it_was(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    by_hand(points(3)).write_html(tmp_path / "page.html")
    assert dict(matplotlib.rcParams) == before


def test_nothing_else_is_left_in_the_folder(tmp_path: Path) -> None:
    assert by_hand(points(3)).write_html(str(tmp_path / "page.html")) == tmp_path / "page.html"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
