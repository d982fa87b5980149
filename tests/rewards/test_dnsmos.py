import copy
import pickle
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from dnsmos_graph import write_dnsmos
from torch import Tensor

from diffreward.audio.resampling import mono, resample
from diffreward.conformance import check_reward
from diffreward.random import stream
from diffreward.rewards.dnsmos import DNSMOS, _Network, _read, _windows
from diffreward.samples import Audio, Texts

pytest.importorskip("onnx", reason="DNSMOS reads an ONNX file")

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "rewards"
MODEL = DATA / "audio_models" / "dnsmos_sig_bak_ovr.onnx"
SPEECH = DATA / "audio" / "silero_test.wav"
POLYNOMIALS = {
    "SIG": np.poly1d([-0.08397278, 1.22083953, 0.0052439]),
    "BAK": np.poly1d([-0.13166888, 1.60915514, -0.39604546]),
    "OVRL": np.poly1d([-0.06766283, 1.11546468, 0.04602535]),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dnsmos(tmp_path_factory.mktemp("dnsmos"))


def speech(seconds: int) -> Tensor:
    """The beginning of a recording, (1, 1, T) at 16 kHz."""
    if not SPEECH.exists() or not MODEL.exists():
        pytest.skip(f"{SPEECH} or {MODEL} is not here")
    with wave.open(str(SPEECH)) as file:
        levels = np.frombuffer(file.readframes(seconds * 16_000), "<i2")
    return torch.from_numpy(levels.astype("float32") / 32768)[None, None]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(shape, generator=stream(seed))


def onnxruntime_ratings(model: str, window: Tensor) -> np.ndarray:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the other side of the comparison")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options)
    return np.asarray(session.run(None, {"input_1": window.numpy()})[0])


@pytest.mark.parametrize("length", [1, 1600, 80_000, 96_000, 144_000, 144_159, 144_160])
@pytest.mark.parametrize("more", [0, 16_000, 31_999, 32_000])
def test_windows_are_those_of_the_official_script(length: int, more: int) -> None:
    sound = np.arange(length + more, dtype="float32")
    expected = []
    repeated = sound
    while len(repeated) < 144_160:
        repeated = np.append(repeated, repeated)
    for hop in range(int(np.floor(len(repeated) / 16_000) - 9.01) + 1):
        # The script has int where round stands here.
        window = repeated[hop * 16_000 : round((hop + 9.01) * 16_000)]
        if len(window) == 144_160:
            expected.append(window)
    assert np.array_equal(_windows(torch.from_numpy(sound)[None])[0].numpy(), np.stack(expected))


@pytest.mark.parametrize("head", POLYNOMIALS)
def test_a_head_is_the_polynomial_of_what_onnxruntime_returns(model: str, head: str) -> None:
    waves = noise(2, 1, 176_160)
    found = DNSMOS(model, head)(Audio(waves, 16_000), ["", ""])
    for sound, score in zip(waves[:, 0], found, strict=True):
        windows = [sound[None, start : start + 144_160] for start in (0, 16_000)]
        raw = np.concatenate([onnxruntime_ratings(model, window) for window in windows])
        rating = POLYNOMIALS[head](raw[:, ["SIG", "BAK", "OVRL"].index(head)]).mean()
        assert score.item() == pytest.approx(rating, abs=1e-4)


def test_the_published_network_computes_what_onnxruntime_computes() -> None:
    window = speech(10)[0, :, :144_160]
    raw = onnxruntime_ratings(str(MODEL), window)[0, 2]
    found = DNSMOS(str(MODEL))(Audio(window[None], 16_000), [""])
    # A sound of 9.01 s is one window.
    assert found.item() == pytest.approx(POLYNOMIALS["OVRL"](raw), abs=1e-4)


@pytest.mark.parametrize(
    ("head", "rating"),
    [
        ("OVRL", 2.9248),
        pytest.param("SIG", 3.4792, marks=pytest.mark.slow),
        pytest.param("BAK", 3.54, marks=pytest.mark.slow),
    ],
)
def test_a_recording_has_its_known_rating(head: str, rating: float) -> None:
    sound = Audio(speech(12), 16_000)
    assert DNSMOS(str(MODEL), head)(sound, [""]).item() == pytest.approx(rating, abs=1e-3)


def test_the_contract_is_kept(model: str) -> None:
    # Five windows are evaluated in two parts.
    check_reward(DNSMOS(model), Audio(noise(5, 2, 48_000), 8000), [""] * 5)


def test_channels_are_averaged_and_rates_converted(model: str) -> None:
    waves = noise(2, 2, 73_000)
    found = DNSMOS(model)(Audio(waves, 8000), ["", ""])
    same = Audio(resample(waves.mean(1, keepdim=True), 8000, 16_000), 16_000)
    torch.testing.assert_close(found, DNSMOS(model)(same, ["", ""]))


@pytest.mark.parametrize("published", [False, True])
def test_gradients_are_those_of_finite_differences(published: bool, model: str) -> None:
    if published and not MODEL.exists():
        pytest.skip(f"{MODEL} is not here")
    network = _Network(_read(str(MODEL) if published else model)).double()
    # The network takes sounds of any length that leaves something to its poolings.
    waves = noise(1, 3000).double().requires_grad_()
    mixture = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    (gradient,) = torch.autograd.grad((network(waves) @ mixture).sum(), waves)
    for seed in range(3):
        direction = torch.randn(waves.shape, generator=stream(seed, "direction")).double()
        with torch.no_grad():
            ahead, behind = (network(waves + s * direction) @ mixture for s in (1e-9, -1e-9))
        slope = (ahead - behind) / 2e-9
        assert slope.abs().item() > 1e-2
        torch.testing.assert_close((gradient * direction).sum(1), slope, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_all_windows_together(model: str) -> None:
    reward = DNSMOS(model)
    waves = noise(5, 2, 78_000).requires_grad_()
    sound = Audio(waves, 8000)
    (gradient,) = torch.autograd.grad(reward(sound, [""] * 5).sum(), waves)
    raw = reward._network(mono(sound, 16_000)[:, :144_160])[:, 2]
    curve = -0.06766283 * raw**2 + 1.11546468 * raw
    torch.testing.assert_close(gradient, torch.autograd.grad(curve.sum(), waves)[0])
    assert bool((gradient != 0).flatten(2).any(2).all())
    # 9.75 s: one window of 9.01 s, and the filter of the resampling reaches 80 samples farther.
    assert bool((gradient[:, :, 72_200:] == 0).all())


def test_silence_has_a_rating_and_no_gradient(model: str) -> None:
    waves = torch.zeros(1, 1, 700, requires_grad=True)
    score = DNSMOS(model)(Audio(waves, 16_000), [""])
    score.sum().backward()
    assert waves.grad is not None and bool((waves.grad == 0).all()) and bool(score.isfinite())


def test_autocast_does_not_change_the_score(model: str) -> None:
    sound = Audio(noise(1, 1, 16_000), 16_000)
    expected = DNSMOS(model)(sound, [""])
    with torch.autocast("cpu", torch.bfloat16):
        found = DNSMOS(model)(sound, [""])
    torch.testing.assert_close(found, expected)


def test_heads_share_one_network_and_copies_load_their_own(model: str) -> None:
    sound = Audio(noise(1, 1, 16_000), 16_000)
    first, second = DNSMOS(model, "SIG"), DNSMOS(model, "BAK")
    scores = [first(sound, [""]), second(sound, [""])]
    assert first._network is second._network is not None
    assert first(sound, [""]) == scores[0] != scores[1]
    twin = pickle.loads(pickle.dumps(first))
    assert twin._network is None and copy.copy(first)._network is None
    assert twin(sound, [""]) == scores[0]


def test_mistakes_are_named(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"head is one of .*got 'MOS'"):
        DNSMOS(model, "MOS")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"no model at .*download"):
        DNSMOS(str(tmp_path / "sig_bak_ovr.onnx"))
    with pytest.raises(TypeError, match="scores Audio"):
        DNSMOS(model)(Texts(("a",)), [""])
    monkeypatch.setitem(sys.modules, "onnx", None)
    reward = DNSMOS(shallow_copy(model, tmp_path))
    with pytest.raises(ImportError, match=r"diffreward\[audio\]"):
        reward(Audio(noise(1, 1, 16_000), 16_000), [""])


def shallow_copy(model: str, folder: Path) -> str:
    """The same file in another place, which no reward has loaded."""
    other = folder / "other.onnx"
    other.write_bytes(Path(model).read_bytes())
    return str(other)


def test_another_graph_is_refused(model: str, tmp_path: Path) -> None:
    import onnx

    graph = onnx.load(model)
    del graph.graph.node[-1]
    onnx.save(graph, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"is not sig_bak_ovr\.onnx"):
        DNSMOS(str(tmp_path / "other.onnx"))(Audio(noise(1, 1, 16_000), 16_000), [""])
