"""A network that several rewards look through is loaded once, frozen, and goes with the last."""

import gc
import pickle
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffreward.backbones import EmbeddedTexts, clip_image_tower, features, load_once, locate
from diffreward.random import stream

CPU = torch.device("cpu")


class Loads:
    """Makes a network in half precision, in training mode, and counts how often."""

    def __init__(self) -> None:
        self.sources: list[str] = []

    def __call__(self, source: str) -> nn.Module:
        self.sources.append(source)
        return nn.Sequential(nn.Linear(3, 2), nn.Dropout()).bfloat16()


def test_a_source_is_loaded_once_and_frozen_in_float32() -> None:
    load = Loads()
    first, second = load_once(nn.Linear, "org/name", load), load_once(nn.Linear, "org/name", load)
    assert first is second and load.sources == ["org/name"]
    assert not first.training
    assert [(p.dtype, p.requires_grad) for p in first.parameters()] == [(torch.float32, False)] * 2


def test_other_kinds_and_other_sources_are_loaded_for_themselves() -> None:
    load = Loads()
    kept = [load_once(nn.Linear, "org/a", load), load_once(nn.Module, "org/a", load)]
    kept.append(load_once(nn.Linear, "org/b", load))
    assert len({id(network) for network in kept}) == 3 == len(load.sources)


def test_names_of_one_folder_are_one_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Loads()
    monkeypatch.chdir(tmp_path.parent)
    one = load_once(nn.Linear, str(tmp_path), load)
    assert load_once(nn.Linear, tmp_path.name, load) is one
    assert load.sources == [str(tmp_path.resolve())]


def test_a_network_that_nobody_holds_is_forgotten() -> None:
    load = Loads()
    load_once(nn.Linear, "org/forgotten", load)
    gc.collect()
    load_once(nn.Linear, "org/forgotten", load)
    assert len(load.sources) == 2


def test_loading_draws_no_random_numbers_and_works_in_inference_mode() -> None:
    before = torch.get_rng_state()
    with torch.inference_mode():
        network = load_once(nn.Linear, "org/inference", Loads())
    assert torch.equal(torch.get_rng_state(), before)
    inputs = torch.ones(1, 3, requires_grad=True)
    network(inputs).sum().backward()
    assert inputs.grad is not None


def test_threads_that_ask_at_once_get_one_network() -> None:
    load = Loads()

    def slowly(source: str) -> nn.Module:
        time.sleep(0.05)
        return load(source)

    found: list[nn.Module] = []
    threads = [
        threading.Thread(target=lambda: found.append(load_once(nn.Linear, "org/t", slowly)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(load.sources) == 1
    assert len({id(network) for network in found}) == 1 and len(found) == 4


def test_folders_are_absolute_and_hub_ids_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"the folder model holds no config\.json"):
        locate("model")
    (tmp_path / "model" / "config.json").write_text("{}")
    assert locate("model") == str(tmp_path.resolve() / "model")
    assert locate("org/name") == "org/name"
    with pytest.raises(FileNotFoundError, match=r"there is no folder \./org/name"):
        locate("./org/name/")


@pytest.mark.parametrize("record", [True, False])
def test_features_of_both_versions_of_transformers_are_a_tensor(
    record: bool, tiny_clip: nn.Module
) -> None:
    pixels = torch.rand(2, 3, 32, 32, generator=stream(0)).requires_grad_()
    output = tiny_clip.get_image_features(pixel_values=pixels)
    if not record:
        output = features(output)
    found = features(output)
    assert found.shape == (2, 8) and found.dtype == torch.float32
    (gradient,) = torch.autograd.grad(found.sum(), pixels)
    assert gradient.abs().sum() > 0


@pytest.fixture(scope="module")
def tiny_clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    pictures = {**tower, "image_size": 32, "patch_size": 8, "projection_dim": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPConfig(text_config=tower, vision_config=pictures, projection_dim=8)
        return CLIPModel(config).eval()


def test_an_image_tower_is_found_in_a_whole_clip_model(
    tiny_clip: nn.Module, tmp_path: Path
) -> None:
    tiny_clip.half().save_pretrained(tmp_path)
    tower = clip_image_tower(str(tmp_path))
    assert tower is clip_image_tower(str(tmp_path))
    tiny_clip.float()
    pixels = torch.rand(2, 3, 32, 32, generator=stream(1))
    with torch.no_grad():
        expected = features(tiny_clip.get_image_features(pixel_values=pixels))
        torch.testing.assert_close(tower(pixel_values=pixels).image_embeds, expected)


def length(text: str) -> Tensor:
    """Two numbers that autocast would round: 1 + 2^-12 is no bfloat16."""
    return torch.tensor([[len(text), 1 + 2**-12]]).mm(torch.eye(2))[0]


def test_texts_are_embedded_once_and_come_in_order() -> None:
    asked: list[str] = []

    def embed(text: str) -> Tensor:
        asked.append(text)
        return length(text)

    texts = EmbeddedTexts()
    assert texts(["ab", "c", "ab"], embed, CPU)[:, 0].tolist() == [2, 1, 2]
    assert texts(["c", "def"], embed, CPU)[:, 0].tolist() == [1, 3]
    assert asked == ["ab", "c", "def"]


def test_texts_are_embedded_in_float32_and_without_gradient() -> None:
    weight = torch.ones(2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = EmbeddedTexts()(["ab"], lambda text: weight * length(text), CPU)
    assert rows.tolist() == [[2, 1 + 2**-12]]
    assert not rows.requires_grad


def test_texts_not_asked_for_the_longest_are_forgotten_first() -> None:
    asked: list[str] = []

    def embed(text: str) -> Tensor:
        asked.append(text)
        return length(text)

    texts = EmbeddedTexts(size=2)
    for batch in (["a", "b"], ["a"], ["c"], ["a", "c"], ["b"], ["d", "e", "f"]):
        texts(batch, embed, CPU)
    assert asked == ["a", "b", "c", "b", "d", "e", "f"]


def test_copies_carry_no_embeddings() -> None:
    texts = EmbeddedTexts(size=3)
    texts(["word"], lambda text: torch.zeros(1000), CPU)
    stored = pickle.dumps(texts)
    assert len(stored) < 1000
    assert pickle.loads(stored).size == 3
