import json
import pickle
from pathlib import Path

import pytest
import torch
from audiobox_weights import CONFIG, weights, write_audiobox
from torch import Tensor

from diffreward.audio.resampling import resample
from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.audiobox_aesthetics import AudioboxAesthetics, _Network
from diffreward.samples import Audio, Texts

# A warning of torch about how transformers calls its attention.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")

# What the code of facebookresearch/audiobox-aesthetics, with these weights and its sizes changed
# to theirs, returned for `chirp` of so many samples.
GOLDEN = {
    160_000: {"CE": 3.206718, "CU": 5.305661, "PC": 5.366688, "PQ": 7.32756},
    250_001: {"CE": 3.204631, "CU": 5.307632, "PC": 5.369718, "PQ": 7.327882},
    16_000: {"CE": 3.233496, "CU": 5.365926, "PC": 5.477257, "PQ": 7.2873},
    53: {"CE": 3.056719, "CU": 5.715377, "PC": 5.894209, "PQ": 7.179913},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_audiobox(tmp_path_factory.mktemp("audiobox"))


def chirp(length: int) -> Tensor:
    """A rising tone in noise, (1, 1, length), at 16 kHz."""
    t = torch.arange(length) / 16_000
    tone = 0.3 * torch.sin(2 * torch.pi * (200 + 100 * t) * t)
    return (tone + 0.1 * torch.randn(1, length, generator=stream(0)))[None]


def noise(*shape: int) -> Tensor:
    return 0.1 * torch.randn(shape, generator=stream(0))


@pytest.mark.parametrize("length", GOLDEN)
def test_ratings_are_those_of_the_official_code(folder: str, length: int) -> None:
    for axis, rating in GOLDEN[length].items():
        found = AudioboxAesthetics(folder, axis)(Audio(chirp(length), 16_000), [""])
        assert found.item() == pytest.approx(rating, abs=1e-5), axis


def test_a_rating_is_on_the_scale_of_its_axis() -> None:
    state = weights()
    state["proj_layer.PQ.3.weight"].zero_()
    state["proj_layer.PQ.3.bias"].fill_(0.5)
    rating = _Network(CONFIG, state)(noise(1, 4000), torch.tensor([4000]), "PQ")
    torch.testing.assert_close(rating, torch.tensor([8.0 + 0.5 * 1.8]))


def test_windows_count_by_the_length_of_their_sound(folder: str) -> None:
    reward, waves = AudioboxAesthetics(folder, "PC"), chirp(200_000)
    parts = [reward(Audio(part, 16_000), [""]) for part in waves.split(160_000, 2)]
    whole = reward(Audio(waves, 16_000), [""])
    assert parts[0].item() != pytest.approx(parts[1].item(), abs=1e-3)
    torch.testing.assert_close(whole, 0.8 * parts[0] + 0.2 * parts[1])


def test_the_contract_is_kept(folder: str) -> None:
    check_reward(AudioboxAesthetics(folder), Audio(noise(3, 2, 84_000), 8000), [""] * 3)


def test_channels_are_averaged_and_rates_converted(folder: str) -> None:
    waves, reward = noise(2, 2, 11_025), AudioboxAesthetics(folder, "CU")
    same = Audio(resample(waves.mean(1, keepdim=True), 22_050, 16_000), 16_000)
    torch.testing.assert_close(reward(Audio(waves, 22_050), ["", ""]), reward(same, ["", ""]))


@pytest.mark.parametrize("axis", ["CE", "PQ"])
def test_gradients_are_those_of_finite_differences(axis: str) -> None:
    network = _Network(CONFIG, weights()).double().eval()
    # The network takes windows of any length; the sound of the second ends early.
    windows, lengths = noise(2, 4000).double().requires_grad_(), torch.tensor([4000, 2500])
    (gradient,) = torch.autograd.grad(network(windows, lengths, axis).sum(), windows)
    for seed in range(3):
        direction = torch.randn(windows.shape, generator=stream(seed, "direction")).double()
        with torch.no_grad():
            ahead, behind = (
                network(windows + s * direction, lengths, axis).sum() for s in (1e-6, -1e-6)
            )
        slope = (ahead - behind) / 2e-6
        assert slope.abs().item() > 1e-3
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-7)


def test_every_sample_of_every_channel_has_a_gradient(folder: str) -> None:
    waves = noise(1, 2, 90_000).requires_grad_()
    AudioboxAesthetics(folder)(Audio(waves, 8000), [""]).sum().backward()
    assert waves.grad is not None and bool(waves.grad.isfinite().all())
    # But for the last ones, which are too few for a step of the network.
    assert (waves.grad[:, :, :79_800] != 0).double().mean() > 0.99
    assert (waves.grad[:, :, 80_200:-200] != 0).double().mean() > 0.99


@pytest.mark.parametrize("length", [1, 16_000])
def test_silence_has_a_rating_and_a_finite_gradient(folder: str, length: int) -> None:
    waves = torch.zeros(1, 1, length, requires_grad=True)
    rating = AudioboxAesthetics(folder)(Audio(waves, 16_000), [""])
    rating.sum().backward()
    assert waves.grad is not None and bool(waves.grad.isfinite().all())
    assert bool(rating.isfinite())


def test_autocast_does_not_change_the_score(folder: str) -> None:
    sound, reward = Audio(noise(1, 1, 8000), 16_000), AudioboxAesthetics(folder)
    expected = reward(sound, [""])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(reward(sound, [""]), expected)


def test_the_checkpoint_of_the_authors_is_read_too(folder: str, tmp_path: Path) -> None:
    saved = {
        "state_dict": {f"model.{name}": weight for name, weight in weights().items()},
        "model_cfg": {"normalize_embed": True},
        "target_transform": CONFIG["target_transform"],
    }
    torch.save(saved, tmp_path / "checkpoint.pt")
    sound = Audio(noise(1, 1, 8000), 16_000)
    found = AudioboxAesthetics(str(tmp_path / "checkpoint.pt"))(sound, [""])
    assert torch.equal(found, AudioboxAesthetics(folder)(sound, [""]))


def test_axes_share_one_network_and_copies_load_their_own(folder: str) -> None:
    sound = Audio(noise(1, 1, 8000), 16_000)
    first, second = AudioboxAesthetics(folder, "CE"), AudioboxAesthetics(folder, "PQ")
    scores = [first(sound, [""]), second(sound, [""])]
    assert first._network is second._network is not None
    assert first(sound, [""]) == scores[0] != scores[1]
    twin = pickle.loads(pickle.dumps(first))
    assert twin._network is None and twin(sound, [""]) == scores[0]


def test_mistakes_are_named(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"axis is one of .*got 'QP'"):
        AudioboxAesthetics(folder, "QP")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no folder"):
        AudioboxAesthetics(str(tmp_path / "nowhere" / "model"))
    with pytest.raises(TypeError, match="scores Audio"):
        AudioboxAesthetics(folder)(Texts(("a",)), [""])


@pytest.mark.parametrize("lost", ["layer_weights.CE", "wavlm_model.encoder.layers.1.fc1.weight"])
def test_weights_of_another_model_are_refused(lost: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = weights()
    del state[lost]
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ValueError, match="does not hold Audiobox Aesthetics"):
        AudioboxAesthetics(str(tmp_path))(Audio(noise(1, 1, 8000), 16_000), [""])
