import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_clap import save_tiny_clap

from diffreward.audio.resampling import resample
from diffreward.embeddings.clap import ClapEmbedding
from diffreward.random import stream
from diffreward.samples import Audio, Tokens

RATE = 8000
PROMPTS = ["a dog barks", "rain falls on the roof"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clap(tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clap(tmp_path_factory.mktemp("fused"), fused=True)


def noise(length: int = RATE, rate: int = RATE, channels: int = 1) -> Audio:
    waves = torch.randn(2, channels, length, generator=stream(length)).cumsum(2)
    return Audio(waves / waves.abs().amax((1, 2), keepdim=True), rate)


def expected(folder: Path, waves: torch.Tensor) -> torch.Tensor:
    """What transformers makes of mono waves, each alone, (N, D)."""
    from transformers import ClapFeatureExtractor, ClapModel

    model = ClapModel.from_pretrained(folder).eval()
    extractor = ClapFeatureExtractor.from_pretrained(folder)
    rows = []
    for wave in waves.double():
        inputs = extractor(wave.numpy(), sampling_rate=extractor.sampling_rate, return_tensors="pt")
        features = inputs["input_features"].float()
        # The extractor calls one sound of every batch longer than it is.
        longer = torch.zeros(1, 1, dtype=torch.bool)
        with torch.no_grad():
            output = model.audio_model(input_features=features, is_longer=longer).pooler_output
            rows.append(torch.nn.functional.normalize(model.audio_projection(output)[0], dim=-1))
    return torch.stack(rows)


def embed(samples: Audio, folder: Path, **options: Any) -> torch.Tensor:
    return ClapEmbedding(str(folder), **options)(samples, PROMPTS)


def test_a_sound_of_one_window_is_embedded_as_transformers_does(folder: Path) -> None:
    samples = noise()
    found = embed(samples, folder)
    assert found.shape == (2, 1, 12) and found.dtype == torch.float32
    rows = expected(folder, samples.waves[:, 0])
    assert (rows[0] - rows[1]).norm() > 0.05  # or all sounds would be alike
    torch.testing.assert_close(found[:, 0], rows, rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [7999, 4000, 3000, 200])
def test_a_shorter_sound_is_repeated_and_padded_as_transformers_does(
    folder: Path, fused: Path, length: int
) -> None:
    samples = noise(length)
    for path in (folder, fused):
        rows = expected(path, samples.waves[:, 0])
        torch.testing.assert_close(embed(samples, path)[:, 0], rows, rtol=0, atol=1e-5)


@pytest.mark.parametrize("padding", ["repeat", "pad"])
def test_the_folder_says_how_short_sounds_are_padded(tmp_path: Path, padding: str) -> None:
    samples = noise(3000)
    save_tiny_clap(tmp_path, padding=padding)
    rows = expected(tmp_path, samples.waves[:, 0])
    torch.testing.assert_close(embed(samples, tmp_path)[:, 0], rows, rtol=0, atol=1e-5)


def test_rate_length_and_spectrogram_are_read_from_the_folder(tmp_path: Path) -> None:
    settings = {"hop_length": 200, "fft_window_size": 512, "frequency_min": 0}
    save_tiny_clap(tmp_path, rate=16_000, seconds=2, **settings, frequency_max=8000)
    samples = noise(32_000, 16_000)
    found = embed(samples, tmp_path)
    rows = expected(tmp_path, samples.waves[:, 0])
    torch.testing.assert_close(found[:, 0], rows, rtol=0, atol=1e-5)


@pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="wrote the extractor to its own file"
)
def test_a_folder_written_by_the_processor_is_read_too(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel, ClapProcessor

    extractor = ClapFeatureExtractor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ClapModel.from_pretrained(folder).save_pretrained(tmp_path)
    ClapProcessor(extractor, tokenizer).save_pretrained(tmp_path)
    assert torch.equal(embed(noise(), tmp_path), embed(noise(), folder))


def test_a_longer_sound_has_the_same_windows_at_every_call(folder: Path) -> None:
    samples = noise(20_000)
    found = embed(samples, folder)
    assert torch.equal(found, embed(samples, folder))
    for row, start in enumerate([0, RATE, 20_000 - RATE]):
        part = samples.waves[:, 0, start : start + RATE]
        torch.testing.assert_close(found[:, row], expected(folder, part), rtol=0, atol=1e-5)
    assert found.shape == (2, 3, 12)


def test_trailing_windows_end_in_silence(folder: Path) -> None:
    samples = noise(10_000)
    found = embed(samples, folder, hop=0.5, windows="trailing")
    assert found.shape == (2, 3, 12)
    silent = torch.zeros(2, 6000)
    part = torch.cat([samples.waves[:, 0, 8000:], silent], 1)
    torch.testing.assert_close(found[:, 2], expected(folder, part), rtol=0, atol=1e-5)


def test_other_rates_and_stereo_are_brought_to_the_models(folder: Path) -> None:
    samples = noise(44_100, 44_100, channels=2)
    waves = resample(samples.waves.mean(1), 44_100, RATE)
    torch.testing.assert_close(
        embed(samples, folder), embed(Audio(waves[:, None], RATE), folder), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("rate", [8000, 12_000])
def test_the_gradient_is_the_slope_in_a_direction(folder: Path, rate: int) -> None:
    embedding = ClapEmbedding(str(folder))
    waves = noise(rate + 500, rate).waves.requires_grad_()
    target = torch.randn(12, generator=stream(1))

    def project(moved: torch.Tensor) -> torch.Tensor:
        return (embedding(Audio(moved, rate), PROMPTS) * target).sum()

    (gradient,) = torch.autograd.grad(project(waves), waves)
    step = 1e-4 * gradient / gradient.norm()
    with torch.no_grad():
        rise = (project(waves + step) - project(waves - step)) / 2
    torch.testing.assert_close(rise, (gradient * step).sum(), rtol=0.02, atol=1e-6)
    assert gradient.norm() > 0


def test_digital_silence_has_an_embedding_and_a_finite_gradient(folder: Path) -> None:
    waves = torch.zeros(2, 1, 9000, requires_grad=True)
    rows = embed(Audio(waves, RATE), folder)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(2, 2))
    (gradient,) = torch.autograd.grad(rows.sum(), waves)
    assert gradient.isfinite().all()


def test_texts_are_embedded_as_transformers_does_each_alone(folder: Path) -> None:
    from transformers import AutoTokenizer, ClapModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = ClapModel.from_pretrained(folder).eval()
    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model.text_model(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        rows = torch.nn.functional.normalize(model.text_projection(hidden), dim=-1)
    assert (rows[0] - rows[1]).norm() > 0.1
    embedding = ClapEmbedding(str(folder))
    found = embedding.embed_text(PROMPTS)
    torch.testing.assert_close(found, rows, rtol=0, atol=1e-6)
    assert torch.equal(found[1:], ClapEmbedding(str(folder)).embed_text(PROMPTS[1:]))


def test_a_text_beyond_the_context_is_cut_off(folder: Path) -> None:
    embedding = ClapEmbedding(str(folder))
    # Ten positions: eight words between the two marks.
    long = embedding.embed_text(["a dog barks " * 10, "a dog barks " * 2 + "a dog"])
    assert torch.equal(long[0], long[1])


def test_autocast_does_not_round_what_is_heard(folder: Path) -> None:
    samples = noise()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = embed(samples, folder)
    assert torch.equal(found, embed(samples, folder))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_embed_alike_and_carry_no_weights(folder: Path, copied: Any) -> None:
    embedding = ClapEmbedding(str(folder))
    rows = embedding(noise(), PROMPTS)
    assert len(pickle.dumps(embedding)) < 2000
    assert torch.equal(copied(embedding)(noise(), PROMPTS), rows)


def test_two_embeddings_of_one_folder_share_a_model(folder: Path) -> None:
    first, second = ClapEmbedding(str(folder)), ClapEmbedding(str(folder), hop=0.5)
    for embedding in (first, second):
        embedding(noise(), PROMPTS)
    assert first._loaded().model is second._loaded().model


def test_what_cannot_be_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ClapEmbedding(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="hop is greater than 0 s, got 0"):
        ClapEmbedding(str(folder), hop=0.0)
    with pytest.raises(ValueError, match=r"one of \['covering', 'trailing'\], got 'last'"):
        ClapEmbedding(str(folder), windows="last")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="scores Audio"):
        embed(Tokens(torch.zeros(1, 4, dtype=torch.int64), "ACGT"), folder)  # type: ignore[arg-type]
    save_tiny_clap(tmp_path, padding="mirror")
    with pytest.raises(ValueError, match=r"by 'mirror'; known are \['repeatpad'"):
        embed(noise(), tmp_path)
