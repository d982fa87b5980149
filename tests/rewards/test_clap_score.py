import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_clap import save_tiny_clap

from diffreward.conformance import check_reward
from diffreward.embeddings.clap import ClapEmbedding
from diffreward.random import stream
from diffreward.rewards.clap_score import ClapScore
from diffreward.samples import Audio, Tokens

RATE = 8000
PROMPTS = ["a dog barks", "rain falls on the roof", "someone says seven"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clap(tmp_path_factory.mktemp("clap"))


def noise(length: int = RATE) -> Audio:
    waves = torch.randn(3, 1, length, generator=stream(length)).cumsum(2)
    return Audio(waves / waves.abs().amax((1, 2), keepdim=True), RATE)


def test_a_sound_of_one_window_has_the_models_own_logit(folder: Path) -> None:
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    samples = noise()
    model = ClapModel.from_pretrained(folder).eval()
    sounds = ClapFeatureExtractor.from_pretrained(folder)(
        [wave.numpy() for wave in samples.waves[:, 0]], sampling_rate=RATE, return_tensors="pt"
    )
    texts = AutoTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(
            input_ids=texts["input_ids"],
            attention_mask=texts["attention_mask"],
            input_features=sounds["input_features"].float(),
        )
    logits = output.logits_per_audio.diag()
    assert logits.std() > 0.1  # or any score would do
    reward = ClapScore(str(folder), scale=model.logit_scale_a.exp().item())
    scores = reward(samples, PROMPTS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, logits, rtol=0, atol=2e-4)


def test_a_longer_sound_has_the_mean_over_its_windows(folder: Path) -> None:
    samples = noise(2 * RATE)
    halves = [Audio(samples.waves[:, :, start:][:, :, :RATE], RATE) for start in (0, RATE)]
    reward = ClapScore(str(folder))
    expected = (reward(halves[0], PROMPTS) + reward(halves[1], PROMPTS)) / 2
    torch.testing.assert_close(reward(samples, PROMPTS), expected, rtol=0, atol=1e-6)


def test_prefix_and_scale_give_the_other_conventions(folder: Path) -> None:
    plain = ClapScore(str(folder))(noise(), [f"someone says {prompt}" for prompt in PROMPTS])
    scores = ClapScore(str(folder), prefix="someone says ", scale=2.5)(noise(), PROMPTS)
    torch.testing.assert_close(scores, 2.5 * plain)


@pytest.mark.parametrize("length", [500, RATE, 9000])
def test_it_keeps_the_contract_of_a_reward(folder: Path, length: int) -> None:
    check_reward(ClapScore(str(folder), hop=0.5), noise(length), PROMPTS)


@pytest.mark.parametrize("length", [3000, RATE, 12_000])
def test_the_gradient_is_the_slope_along_itself(folder: Path, length: int) -> None:
    reward = ClapScore(str(folder))
    waves = noise(length).waves.requires_grad_()
    scores = reward(Audio(waves, RATE), PROMPTS)
    (gradient,) = torch.autograd.grad(scores.sum(), waves)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    step = 1e-4 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None]
    with torch.no_grad():
        rise = reward(Audio(waves + step, RATE), PROMPTS)
        rise -= reward(Audio(waves - step, RATE), PROMPTS)
    torch.testing.assert_close(rise / 2, (gradient * step).sum((1, 2)), rtol=0.02, atol=1e-6)


def test_silence_has_a_score_and_a_finite_gradient(folder: Path) -> None:
    waves = torch.zeros(3, 1, RATE, requires_grad=True)
    scores = ClapScore(str(folder))(Audio(waves, RATE), PROMPTS)
    assert scores.isfinite().all()
    (gradient,) = torch.autograd.grad(scores.sum(), waves)
    assert gradient.isfinite().all()


def test_a_spoilt_sound_has_no_score_and_its_neighbours_keep_theirs(folder: Path) -> None:
    reward = ClapScore(str(folder))
    good = reward(noise(), PROMPTS)
    waves = noise().waves
    waves[1, 0, 0] = torch.nan
    scores = reward(Audio(waves, RATE), PROMPTS)
    assert scores.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(scores[[0, 2]], good[[0, 2]])


def test_a_first_call_in_inference_mode_spoils_nothing(folder: Path) -> None:
    reward = ClapScore(str(folder))
    with torch.inference_mode():
        first = reward(noise(), PROMPTS)
    assert not reward(noise(), PROMPTS).requires_grad
    waves = noise().waves.requires_grad_()
    scores = reward(Audio(waves, RATE), PROMPTS)
    scores.sum().backward()
    torch.testing.assert_close(scores.detach(), first)
    assert waves.grad is not None


def test_a_prompt_is_embedded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import ClapModel

    reward, calls = ClapScore(str(folder)), []
    embed = ClapModel.get_text_features

    def counted(self: ClapModel, **inputs: Any) -> Any:
        calls.append(inputs)
        return embed(self, **inputs)

    monkeypatch.setattr(ClapModel, "get_text_features", counted)
    reward(noise(), ["a dog barks", "rain falls", "a dog barks"])
    reward(noise(), ["rain falls", "rain falls", "a dog barks"])
    assert len(calls) == 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_copies_score_alike_and_carry_no_weights(folder: Path, copied: Any) -> None:
    reward = ClapScore(str(folder))
    scores = reward(noise(), PROMPTS)
    assert len(pickle.dumps(reward)) < 10_000
    assert torch.equal(copied(reward)(noise(), PROMPTS), scores)


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    before = torch.get_rng_state()
    ClapScore(str(folder))(noise(), PROMPTS)
    assert torch.equal(torch.get_rng_state(), before)


def test_score_and_embedding_stand_on_one_model(folder: Path) -> None:
    reward, embedding = ClapScore(str(folder)), ClapEmbedding(str(folder))
    reward(noise(), PROMPTS)
    embedding(noise(), PROMPTS)
    assert reward.embedding._loaded().model is embedding._loaded().model


def test_what_cannot_be_scored_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ClapScore(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        ClapScore(str(tmp_path))
    with pytest.raises(TypeError, match="scores Audio"):
        ClapScore(str(folder))(Tokens(torch.zeros(1, 4, dtype=torch.int64), "ACGT"), [""])
    ClapScore()
