import pickle
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from silero_weights import random_network, write_silero
from torch import Tensor, nn

from diffreward.audio.resampling import resample
from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.speech_presence import _LAYERS, SpeechPresence, _Network
from diffreward.samples import Audio, Texts

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "rewards"
WEIGHTS = DATA / "audio_models" / "silero_vad_16k_from_jit.safetensors"
GOLDEN = DATA / "audio_models" / "silero_golden_probs_first8s.npy"
SPEECH = DATA / "audio" / "silero_test.wav"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_silero(tmp_path_factory.mktemp("silero"))


def published() -> SpeechPresence:
    for path in (WEIGHTS, GOLDEN, SPEECH):
        if not path.exists():
            pytest.skip(f"{path} is not here")
    return SpeechPresence(str(WEIGHTS))


def speech() -> Tensor:
    """The first 8 s of a recording, (1, 1, 128000) at 16 kHz."""
    with wave.open(str(SPEECH)) as file:
        levels = np.frombuffer(file.readframes(8 * 16_000), "<i2")
    return torch.from_numpy(levels.astype("float32") / 32768)[None, None]


def noise(*shape: int) -> Tensor:
    return 0.1 * torch.randn(shape, generator=stream(0))


def test_a_network_that_hears_nothing_returns_its_bias(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {name: torch.zeros_like(weight) for name, weight in _Network().state_dict().items()}
    state["final_conv.bias"] = torch.tensor([0.75]).logit()
    save_file(state, tmp_path / "deaf.safetensors")
    reward = SpeechPresence(str(tmp_path / "deaf.safetensors"))
    score = reward(Audio(noise(2, 1, 3000), 16_000), ["", ""])
    torch.testing.assert_close(score, torch.tensor([0.75, 0.75]))


def test_a_recording_has_its_known_probabilities() -> None:
    reward, sound = published(), Audio(speech(), 16_000)
    found = reward.probabilities(sound)
    torch.testing.assert_close(found[0], torch.from_numpy(np.load(GOLDEN)), rtol=0, atol=1e-6)
    assert reward(sound, [""]).item() == pytest.approx(0.73277, abs=1e-5)


def test_speech_scores_above_noise_and_silence() -> None:
    reward = published()
    loudness = speech().std()
    hiss = loudness * torch.randn(1, 1, 128_000, generator=stream(0))
    sounds = torch.cat([speech(), hiss, torch.zeros(1, 1, 128_000)])
    score = reward(Audio(sounds, 16_000), [""] * 3)
    assert score[0] > 0.7 and bool((score[1:] < 0.1).all())


def test_what_comes_later_does_not_change_what_was_heard(weights: str) -> None:
    reward, waves = SpeechPresence(weights), noise(2, 1, 3000)
    found = reward.probabilities(Audio(waves, 16_000))
    assert found.shape == (2, 6)
    sooner = reward.probabilities(Audio(waves[:, :, : 4 * 512], 16_000))
    torch.testing.assert_close(found[:, :4], sooner)
    # The last chunk is filled up with silence.
    padded = Audio(torch.cat([waves, torch.zeros(2, 1, 72)], 2), 16_000)
    torch.testing.assert_close(found, reward.probabilities(padded))
    torch.testing.assert_close(found.mean(1), reward(padded, ["", ""]))


def test_a_chunk_is_heard_after_its_context_and_the_state(weights: str) -> None:
    waves = noise(1, 1, 4 * 512)
    expected = SpeechPresence(weights).probabilities(Audio(waves, 16_000))
    network = random_network().eval()
    state = (torch.zeros(1, 128), torch.zeros(1, 128))
    past, found = torch.zeros(64), []
    for chunk in waves[0, 0].split(512):
        heard = torch.cat([past, chunk])
        reflected = torch.cat([heard, heard[-65:-1].flip(0)])
        frames = torch.stack([reflected[i : i + 256] for i in (0, 128, 256, 384)])
        basis = network.stft_conv.weight[:, 0]
        x = ((frames @ basis[:129].T) ** 2 + (frames @ basis[129:].T) ** 2).sqrt().T[None]
        for layer in (network.conv1, network.conv2, network.conv3, network.conv4):
            x = layer(x).relu()
        state = network.lstm_cell(x[..., 0], state)
        found.append(network.final_conv(state[0].relu()[..., None]).sigmoid().flatten())
        past = chunk[-64:]
    torch.testing.assert_close(expected[0], torch.cat(found), rtol=0, atol=1e-6)


def test_the_contract_is_kept(weights: str) -> None:
    check_reward(SpeechPresence(weights), Audio(noise(3, 2, 2000), 22_050), [""] * 3)


def test_channels_are_averaged_and_rates_converted(weights: str) -> None:
    waves, reward = noise(2, 2, 2000), SpeechPresence(weights)
    same = Audio(resample(waves.mean(1, keepdim=True), 8000, 16_000), 16_000)
    found = reward.probabilities(Audio(waves, 8000))
    torch.testing.assert_close(found, reward.probabilities(same))


@pytest.mark.parametrize("real", [False, True])
def test_gradients_are_those_of_finite_differences(real: bool) -> None:
    network = random_network()
    if real:
        from safetensors.torch import load_file

        published()
        network.load_state_dict(load_file(WEIGHTS))
    network.double()
    waves = (speech()[0, :, 5000:7000] if real else noise(1, 2000)).double().requires_grad_()
    (gradient,) = torch.autograd.grad(network(waves).mean(), waves)
    for seed in range(3):
        direction = torch.randn(waves.shape, generator=stream(seed, "direction")).double()
        with torch.no_grad():
            ahead, behind = (network(waves + s * direction).mean() for s in (1e-8, -1e-8))
        slope = (ahead - behind) / 2e-8
        assert slope.abs().item() > 1e-4
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-7)


def test_every_sample_of_every_channel_has_a_gradient(weights: str) -> None:
    waves = noise(2, 2, 1500).requires_grad_()
    SpeechPresence(weights)(Audio(waves, 8000), ["", ""]).sum().backward()
    assert waves.grad is not None and bool(waves.grad.isfinite().all())
    assert (waves.grad != 0).double().mean() > 0.99


@pytest.mark.parametrize("length", [1, 511, 1024])
def test_silence_has_a_score_and_a_finite_gradient(weights: str, length: int) -> None:
    waves = torch.zeros(1, 1, length, requires_grad=True)
    score = SpeechPresence(weights)(Audio(waves, 16_000), [""])
    score.sum().backward()
    assert waves.grad is not None and bool(waves.grad.isfinite().all()) and 0 < score.item() < 1


def test_autocast_does_not_change_the_score(weights: str) -> None:
    sound, reward = Audio(noise(1, 1, 2000), 16_000), SpeechPresence(weights)
    expected = reward(sound, [""])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(reward(sound, [""]), expected)


class Nested(nn.Module):
    """A module with weights of given dotted names."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        parts: dict[str, dict[str, Tensor]] = {}
        for name, weight in state.items():
            first, dot, rest = name.partition(".")
            if dot:
                parts.setdefault(first, {})[rest] = weight
            else:
                self.register_buffer(name, weight)
        for name, part in parts.items():
            self.add_module(name, Nested(part))

    def forward(self) -> None:
        pass


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_both_published_files_are_read(weights: str, tmp_path: Path) -> None:
    theirs = {}
    for name, weight in random_network().state_dict().items():
        for prefix, ours in _LAYERS.items():
            if name.startswith(ours):
                theirs[f"_model.{prefix}{name.removeprefix(ours)}"] = weight
    # The file also holds a network for 8 kHz.
    theirs["_model_8k.stft.forward_basis_buffer"] = torch.ones(130, 1, 128)
    torch.jit.script(Nested(theirs)).save(str(tmp_path / "silero_vad.jit"))
    sound = Audio(noise(1, 1, 2000), 16_000)
    found = SpeechPresence(str(tmp_path / "silero_vad.jit"))(sound, [""])
    assert torch.equal(found, SpeechPresence(weights)(sound, [""]))


def test_copies_load_their_own_network(weights: str) -> None:
    reward, sound = SpeechPresence(weights), Audio(noise(1, 1, 2000), 16_000)
    score = reward(sound, [""])
    twin = pickle.loads(pickle.dumps(reward))
    assert twin._network is None and reward._network is not None
    assert torch.equal(twin(sound, [""]), score)
    assert twin._network is reward._network


def test_mistakes_are_named(weights: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match=r"no weights at .*download"):
        SpeechPresence(str(tmp_path / "silero_vad_16k.safetensors"))
    with pytest.raises(TypeError, match="scores Audio"):
        SpeechPresence(weights)(Texts(("a",)), [""])
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not Silero's detector at 16 kHz"):
        SpeechPresence(str(tmp_path / "other.safetensors"))(Audio(noise(1, 1, 9), 16_000), [""])
