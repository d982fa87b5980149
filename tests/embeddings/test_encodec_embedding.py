import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from diffreward.audio.resampling import resample
from diffreward.embeddings.encodec import Encodec
from diffreward.random import stream
from diffreward.samples import Audio, Tokens

RATE = 2000
PROMPTS = ["", ""]


def save_tiny_encodec(folder: Path, **settings: Any) -> Path:
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        sampling_rate=RATE,
        num_filters=4,
        hidden_size=6,
        codebook_dim=6,
        codebook_size=16,
        upsampling_ratios=[4, 2],
        num_lstm_layers=1,
        target_bandwidths=[1.0],
        **settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EncodecModel(config)
    with torch.no_grad():
        rows = model.encoder(noise(900, config.audio_channels).waves).mT.flatten(0, 1)
    for quantizer in model.quantizer.layers:
        # Codes that lie among the rows, or one would be the nearest to all.
        quantizer.codebook.embed.copy_(rows[:: len(rows) // 16][:16])
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encodec(tmp_path_factory.mktemp("mono"))


@pytest.fixture(scope="module")
def stereo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the model for 48 kHz is made."""
    return save_tiny_encodec(
        tmp_path_factory.mktemp("stereo"),
        audio_channels=2,
        normalize=True,
        chunk_length_s=0.5,
        overlap=0.01,
        norm_type="time_group_norm",
        use_causal_conv=False,
    )


def noise(length: int, channels: int = 1, rate: int = RATE) -> Audio:
    waves = torch.randn(2, channels, length, generator=stream(length, channels)).clamp(-1, 1)
    return Audio(waves * torch.tensor([0.5, 0.05])[:, None, None], rate)


def test_rounded_rows_are_the_models_own_codes(folder: Path) -> None:
    from transformers import EncodecModel

    model = EncodecModel.from_pretrained(folder).eval()
    samples = noise(900)
    with torch.no_grad():
        codes = model.encode(samples.waves, bandwidth=1.0).audio_codes[0]
        rows = Encodec(str(folder))(samples, PROMPTS)
        found = model.quantizer.encode(rows.mT, 1.0).transpose(0, 1)
    assert rows.shape == (2, -(-900 // 8), 6)
    assert len(codes.unique()) > 8
    assert torch.equal(found, codes)


def test_a_model_with_segments_encodes_each_on_its_own(stereo: Path) -> None:
    from transformers import EncodecModel

    encoder = EncodecModel.from_pretrained(stereo).eval().encoder
    samples = noise(2500, channels=2)
    with torch.no_grad():
        parts = [encoder(part) for part in samples.waves.split([1000, 1000, 500], dim=2)]
    rows = Encodec(str(stereo))(samples, PROMPTS)
    torch.testing.assert_close(rows, torch.cat(parts, 2).mT)


def test_channels_and_rates_are_brought_to_the_models(folder: Path, stereo: Path) -> None:
    samples = noise(900)
    twice = Audio(samples.waves.expand(-1, 2, -1), RATE)
    mono, double = Encodec(str(folder)), Encodec(str(stereo))
    torch.testing.assert_close(mono(twice, PROMPTS), mono(samples, PROMPTS))
    torch.testing.assert_close(double(twice, PROMPTS), double(samples, PROMPTS))
    faster = noise(900, rate=3000)
    slow = Audio(resample(faster.waves, 3000, RATE), RATE)
    torch.testing.assert_close(mono(faster, PROMPTS), mono(slow, PROMPTS))


def test_the_first_call_in_inference_mode_spoils_nothing(folder: Path) -> None:
    embedding = Encodec(str(folder))
    with torch.inference_mode():
        embedding(noise(900), PROMPTS)
    waves = noise(900).waves.requires_grad_()
    embedding(Audio(waves, RATE), PROMPTS).sum().backward()
    assert waves.grad is not None


def test_rows_do_not_depend_on_the_batch(folder: Path) -> None:
    embedding = Encodec(str(folder))
    rows = embedding(noise(900), PROMPTS)
    torch.testing.assert_close(embedding(noise(900)[1:], [""]), rows[1:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["folder", "stereo"])
def test_the_gradient_is_the_slope_in_a_direction(
    kind: str, request: pytest.FixtureRequest
) -> None:
    embedding = Encodec(str(request.getfixturevalue(kind)))
    waves = noise(900).waves.requires_grad_()
    weights = torch.randn(6, generator=stream(1))  # the sum is what a group norm takes out

    def project(moved: torch.Tensor) -> torch.Tensor:
        return (embedding(Audio(moved, RATE), PROMPTS) * weights).double().sum()

    (gradient,) = torch.autograd.grad(project(waves), waves)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    step = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        rise = (project(waves + step) - project(waves - step)).float() / 2
    torch.testing.assert_close(rise, (gradient * step).sum(), rtol=0.05, atol=1e-6)


def test_the_recurrent_layers_stay_differentiable_on_cudnn(folder: Path) -> None:
    embedding = Encodec(str(folder))
    embedding(noise(900), PROMPTS)
    layers = [m for m in embedding._model.modules() if isinstance(m, torch.nn.LSTM)]
    assert layers and all(layer.training and layer.dropout == 0 for layer in layers)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_embed_alike_and_carry_no_weights(folder: Path, copied: Any) -> None:
    embedding = Encodec(str(folder))
    rows = embedding(noise(900), PROMPTS)
    assert len(pickle.dumps(embedding)) < 500
    assert torch.equal(copied(embedding)(noise(900), PROMPTS), rows)


def test_what_cannot_be_is_refused(folder: Path, stereo: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Encodec(str(tmp_path / "nowhere"))
    with pytest.raises(TypeError, match="scores Audio"):
        Encodec(str(folder))(Tokens(torch.zeros(1, 4, dtype=torch.int64), "ACGT"), [""])
    with pytest.raises(ValueError, match="2 channels, or mono; got 3"):
        Encodec(str(stereo))(noise(900, channels=3), PROMPTS)
    Encodec()
