"""The same four known pictures, through every class, field, format and layout of an output."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AceStepPipeline,
    AudioLDM2Pipeline,
    AudioPipelineOutput,
    AutoencoderKL,
    AutoencoderKLLTX2Audio,
    AutoencoderOobleck,
    DanceDiffusionPipeline,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    ImagePipelineOutput,
    Kandinsky6TI2VAPipeline,
    KandinskyV22Pipeline,
    LLaDA2Pipeline,
    LTX2Pipeline,
    MMAudioVAE,
    UNet1DModel,
    UNet2DModel,
    VQModel,
)
from diffusers.pipelines.deepfloyd_if import IFPipelineOutput
from diffusers.pipelines.deprecated.unidiffuser import ImageTextPipelineOutput
from diffusers.pipelines.kandinsky5.pipeline_output import KandinskyImagePipelineOutput
from diffusers.pipelines.llada2.pipeline_llada2 import LLaDA2PipelineOutput
from diffusers.pipelines.ltx2.pipeline_output import LTX2PipelineOutput
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from diffusers.pipelines.marigold import MarigoldDepthOutput
from diffusers.pipelines.shap_e.pipeline_shap_e import ShapEPipelineOutput
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_video_diffusion import StableVideoDiffusionPipelineOutput
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput
from PIL import Image
from tiny import tokenizer
from torch import Tensor
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from diffreward.samples import Audio, Images, Texts, Videos
from diffreward.steering.drop_in import media
from diffreward.steering.drop_in.media import pick, read_media

LEVELS = (torch.arange(4 * 3 * 2 * 5) * 2).to(torch.uint8).reshape(4, 3, 2, 5)
"""Four pictures, no two pixels alike, 2 high and 5 wide."""
PIXELS = LEVELS / 255
NUMPY = PIXELS.permute(0, 2, 3, 1).numpy()
PIL = [Image.fromarray(image.numpy()) for image in LEVELS.permute(0, 2, 3, 1)]
CLIPS = PIXELS.reshape(2, 2, 3, 2, 5)
"""Two videos of two of the pictures each."""


def make(pipeline: type[DiffusionPipeline], **components: Any) -> DiffusionPipeline:
    """A pipeline that lacks the other components."""
    names = [name for name in inspect.signature(pipeline.__init__).parameters if name != "self"]
    return pipeline(**{name: components.get(name) for name in names})


PIPE = make(DDPMPipeline)
SIGNED = make(KandinskyV22Pipeline, movq=VQModel(block_out_channels=(4,), norm_num_groups=4))


@pytest.mark.parametrize(
    "value",
    [
        PIL,
        NUMPY,
        PIXELS,
        [*PIXELS],
        [*NUMPY],
        (NUMPY * 255).round().astype(np.uint8),
    ],
    ids=["PIL", "numpy", "torch", "tensors", "arrays", "levels"],
)
@pytest.mark.parametrize(
    "wrap",
    [
        ImagePipelineOutput,
        lambda value: StableDiffusionPipelineOutput(value, [False] * 4),
        lambda value: KandinskyImagePipelineOutput(image=value),
        lambda value: ImageTextPipelineOutput(value, ["a", "b", "c", "d"]),
        lambda value: (value, [False] * 4),
        lambda value: value,
    ],
    ids=["images", "flags", "image", "images and texts", "tuple", "bare"],
)
def test_images_are_the_same_in_every_format_and_class(
    value: Any, wrap: Callable[[Any], Any]
) -> None:
    samples = read_media(PIPE, wrap(value))
    assert isinstance(samples, Images)
    assert torch.equal(samples.pixels, PIXELS)


@pytest.mark.parametrize(
    "value",
    [
        [PIL[:2], PIL[2:]],
        NUMPY.reshape(2, 2, 2, 5, 3),
        [NUMPY[:2], NUMPY[2:]],
        [[*NUMPY[:2]], [*NUMPY[2:]]],
        CLIPS,
        [*CLIPS],
        CLIPS.transpose(1, 2),
        [*CLIPS.transpose(1, 2)],
    ],
    ids=["PIL", "numpy", "arrays", "frames", "BFCHW", "FCHW", "BCFHW", "CFHW"],
)
@pytest.mark.parametrize(
    "wrap",
    [
        WanPipelineOutput,
        lambda value: LTX2PipelineOutput(value, torch.zeros(2, 2, 9)),
        lambda v: (v,),
    ],
    ids=["frames", "frames and audio", "tuple"],
)
def test_videos_are_the_same_in_every_format_and_layout(
    value: Any, wrap: Callable[[Any], Any]
) -> None:
    samples = read_media(PIPE, wrap(value))
    assert isinstance(samples, Videos)
    assert torch.equal(samples.frames, CLIPS)
    assert samples.fps == Videos(CLIPS).fps


@pytest.mark.parametrize("value", [PIL, NUMPY, PIXELS], ids=["PIL", "numpy", "torch"])
def test_a_pipeline_that_makes_one_video_may_return_its_frames_alone(value: Any) -> None:
    samples = read_media(PIPE, WanPipelineOutput(frames=value))
    assert isinstance(samples, Videos)
    assert torch.equal(samples.frames, PIXELS[None])


def test_three_frames_are_not_taken_for_channels() -> None:
    frames = torch.rand(2, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    samples = read_media(PIPE, WanPipelineOutput(frames=frames))
    assert isinstance(samples, Videos) and torch.equal(samples.frames, frames)
    one_frame = frames[:, :1].transpose(1, 2)
    samples = read_media(PIPE, WanPipelineOutput(frames=one_frame))
    assert isinstance(samples, Videos) and torch.equal(samples.frames, frames[:, :1])


@pytest.mark.parametrize(
    "value",
    [
        PIXELS[:, :1],
        PIXELS[:, :1].permute(0, 2, 3, 1).numpy(),
        [Image.fromarray(image.numpy()) for image in LEVELS[:, 0]],
    ],
    ids=["torch", "numpy", "PIL"],
)
def test_grey_pictures_get_three_equal_channels(value: Any) -> None:
    samples = read_media(PIPE, ImagePipelineOutput(value))
    assert isinstance(samples, Images)
    assert torch.equal(samples.pixels, PIXELS[:, :1].expand(4, 3, 2, 5))


@pytest.mark.parametrize("channel_axis", [1, 2])
def test_grey_videos_get_three_equal_channels(channel_axis: int) -> None:
    grey = torch.stack([PIXELS[:, 0], PIXELS[:, 1]]).unsqueeze(channel_axis)
    samples = read_media(PIPE, WanPipelineOutput(frames=grey))
    assert isinstance(samples, Videos)
    for channel in range(3):
        assert torch.equal(samples.frames[:, :, channel], PIXELS[:, :2].transpose(0, 1))


@pytest.mark.parametrize(
    ("pipe", "output"),
    [
        (PIPE, lambda x: ImagePipelineOutput(x)),
        (PIPE, lambda x: WanPipelineOutput(frames=x[None])),
        (SIGNED, lambda x: ImagePipelineOutput(x * 2 - 1)),
    ],
    ids=["images", "videos", "signed images"],
)
def test_the_gradient_reaches_what_the_network_made(
    pipe: DiffusionPipeline, output: Callable[[Tensor], Any]
) -> None:
    made = (PIXELS * 0.5 + 0.25).requires_grad_()
    weights = torch.randn(PIXELS.shape, generator=torch.Generator().manual_seed(0))
    samples = read_media(pipe, output(made))
    content = samples.pixels if isinstance(samples, Images) else vars(samples)["frames"][0]
    (gradient,) = torch.autograd.grad((content * weights).sum(), made)
    assert torch.allclose(gradient, weights)


def test_pixels_keep_their_precision() -> None:
    samples = read_media(PIPE, ImagePipelineOutput(PIXELS.bfloat16()))
    assert isinstance(samples, Images) and samples.pixels.dtype == torch.bfloat16


def test_signed_pixels_of_the_pipelines_that_return_them_are_scaled() -> None:
    class Own(KandinskyV22Pipeline):
        pass

    for pipe in (SIGNED, make(Own, movq=SIGNED.movq)):
        for value in (PIXELS * 4 - 2, NUMPY, PIL):
            expected = (PIXELS * 2 - 0.5).clamp(0, 1) if isinstance(value, Tensor) else PIXELS
            samples = read_media(pipe, ImagePipelineOutput(value))
            assert isinstance(samples, Images)
            assert torch.allclose(samples.pixels, expected, atol=1e-6)


@pytest.mark.parametrize("value", [PIXELS * 2 - 1, NUMPY * 2], ids=["signed", "bright"])
def test_pixels_out_of_range_are_refused_not_clamped(value: Any) -> None:
    with pytest.raises(ValueError, match=r"DDPMPipeline returned pixels in \[.*expected \[0, 1\]"):
        read_media(PIPE, ImagePipelineOutput(value))


def test_the_pipelines_said_to_return_signed_pixels_exist() -> None:
    assert set(dir(diffusers)) >= media._SIGNED


def files_that_return_signed_pixels() -> set[str]:
    """The files whose code returns images as the network gave them for output_type="pt"."""
    folder = Path(diffusers.__file__).parent / "pipelines"
    files = [p for p in folder.glob("*/pipeline_*.py") if "onnx" not in p.name]
    tails = (
        'if output_type in ["np", "pil"]:\n',
        'elif output_type == "pt":\n            nsfw_detected = None',
        'if output_type in ["latent", "pt"]:\n            image = latents',
        'if output_type in ("np", "pil"):\n',
    )
    return {p.stem for p in files if any(tail in p.read_text() for tail in tails)}


def test_no_pipeline_with_signed_pixels_is_forgotten() -> None:
    known = {inspect.getmodule(getattr(diffusers, name)) for name in media._SIGNED}
    stems = {module.__name__.split(".")[-1] for module in known if module is not None}
    combined = {"pipeline_kandinsky_combined", "pipeline_kandinsky2_2_combined"}
    assert stems - combined == files_that_return_signed_pixels()


def vocoder() -> SpeechT5HifiGan:
    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=4,
            upsample_initial_channel=4,
            upsample_rates=[2],
            upsample_kernel_sizes=[4],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1]],
            sampling_rate=16001,
        )
    )


def ltx2_vocoder() -> LTX2Vocoder:
    return LTX2Vocoder(
        in_channels=4,
        hidden_channels=4,
        upsample_kernel_sizes=[4],
        upsample_factors=[2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
        output_sampling_rate=24001,
    )


def oobleck() -> AutoencoderOobleck:
    return AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=[2],
        channel_multiples=[1],
        decoder_channels=4,
        decoder_input_channels=4,
        sampling_rate=48001,
    )


def dance() -> UNet1DModel:
    return UNet1DModel(
        sample_size=64,
        sample_rate=22051,
        extra_in_channels=16,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D"),
        up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
    )


SOUNDING: dict[str, tuple[Callable[[], DiffusionPipeline], int]] = {
    "AudioLDM2": (
        lambda: make(AudioLDM2Pipeline, vae=AutoencoderKL(norm_num_groups=4), vocoder=vocoder()),
        16001,
    ),
    "ACE-Step": (lambda: make(AceStepPipeline, vae=oobleck()), 48001),
    "dance diffusion": (
        lambda: make(DanceDiffusionPipeline, unet=dance(), scheduler=DDPMScheduler()),
        22051,
    ),
    "LTX-2": (
        lambda: make(LTX2Pipeline, audio_vae=a_sound_vae(), vocoder=ltx2_vocoder()),
        24001,
    ),
    "Kandinsky 6": (
        lambda: make(
            Kandinsky6TI2VAPipeline, audio_vae=MMAudioVAE(hidden_channels=8, sample_rate=44101)
        ),
        44101,
    ),
}
"""With the rate that the sound has; it is no default, and other components may have another."""


def a_sound_vae() -> AutoencoderKLLTX2Audio:
    return AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, norm_type="pixel"
    )


@pytest.mark.parametrize("name", SOUNDING)
def test_the_rate_is_that_of_what_makes_the_sound(name: str) -> None:
    build, rate = SOUNDING[name]
    samples = read_media(build(), AudioPipelineOutput(np.zeros((2, 9), np.float32)))
    assert isinstance(samples, Audio)
    assert samples.rate == rate


@pytest.mark.parametrize("wrap", [AudioPipelineOutput, lambda value: (value,)])
def test_sounds_are_the_same_in_every_format(wrap: Callable[[Any], Any]) -> None:
    pipe = SOUNDING["ACE-Step"][0]()
    waves = torch.linspace(-1, 1, 2 * 2 * 9).reshape(2, 2, 9)
    for value, expected in [
        (waves, waves),
        (waves.numpy(), waves),
        (waves[:, 0], waves[:, :1]),
        (waves[:, 0].numpy(), waves[:, :1]),
    ]:
        samples = read_media(pipe, wrap(value))
        assert isinstance(samples, Audio)
        assert torch.equal(samples.waves, expected)


def test_sounds_keep_their_gradient() -> None:
    waves = torch.zeros(2, 9, requires_grad=True)
    samples = read_media(SOUNDING["ACE-Step"][0](), AudioPipelineOutput(waves))
    assert isinstance(samples, Audio) and samples.waves.requires_grad


def test_a_sound_of_an_unknown_rate_is_refused() -> None:
    with pytest.raises(TypeError, match=r"known rate .*\(2, 9\) torch.*; pass decoder="):
        read_media(PIPE, AudioPipelineOutput(torch.zeros(2, 9)))


@pytest.mark.parametrize("shape", [(2, 64, 16), (2, 8, 4, 16)])
def test_latents_of_a_sound_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TypeError, match=r"AceStepPipeline returned.*; pass decoder="):
        read_media(SOUNDING["ACE-Step"][0](), AudioPipelineOutput(torch.zeros(shape)))


@pytest.mark.parametrize(
    "output",
    [
        LLaDA2PipelineOutput(torch.zeros(2, 3, dtype=torch.long), ["a", "b"]),
        ImageTextPipelineOutput(None, ["a", "b"]),
        (None, ["a", "b"]),
    ],
    ids=["texts", "text", "tuple"],
)
def test_texts_are_read(output: Any) -> None:
    assert read_media(PIPE, output) == Texts(("a", "b"))


def test_tokens_are_decoded_to_their_end_when_the_texts_are_not_there(tmp_path: Path) -> None:
    words = tokenizer(tmp_path)
    pipe = LLaDA2Pipeline(model=None, scheduler=DDPMScheduler(), tokenizer=words)
    cat, dog = (words(text, add_special_tokens=False).input_ids for text in ("cat", "dog"))
    ended = [*cat, words.eos_token_id, *dog]
    sequences = torch.tensor([ended, [*dog, *cat, cat[0]]])
    expected = words.batch_decode([cat, [*dog, *cat, cat[0]]])
    assert expected[0] == "cat" and expected[1].startswith("dog")
    for output in (LLaDA2PipelineOutput(sequences), (sequences, None)):
        assert read_media(pipe, output) == Texts(tuple(expected))
    with pytest.raises(TypeError, match=r"sequences: \(2, 7\) torch.int64.*pass decoder="):
        read_media(PIPE, LLaDA2PipelineOutput(sequences))


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (ImagePipelineOutput(torch.zeros(2, 4, 8, 8)), r"images: \(2, 4, 8, 8\) torch.float32"),
        (ImagePipelineOutput(torch.zeros(2, 64, 16)), r"images: \(2, 64, 16\) torch.float32"),
        (WanPipelineOutput(torch.zeros(2, 16, 5, 8, 8)), r"frames: \(2, 16, 5, 8, 8\)"),
        (WanPipelineOutput(torch.zeros(1, 16, 8, 8)), r"frames: \(1, 16, 8, 8\)"),
        (AudioPipelineOutput(torch.zeros(2, 64, 16)), r"audios: \(2, 64, 16\)"),
        (ShapEPipelineOutput([PIL[:2], PIL[2:]]), "images: 2 of 2 of RGB picture of 5 x 2"),
        (ImagePipelineOutput([PIL[0].convert("RGBA")]), "images: 1 of RGBA picture"),
        (ImagePipelineOutput([PIL[0], PIL[0].resize((2, 2))]), "images: 2 of RGB picture"),
        (MarigoldDepthOutput(NUMPY, None, None), r"prediction: \(4, 2, 5, 3\) float32"),
        ((torch.zeros(2, 4, 8, 8), None), r"0: \(2, 4, 8, 8\)"),
        (ImagePipelineOutput([]), "images: list"),
        ((), r"\(\)"),
    ],
)
def test_what_is_no_medium_is_refused_with_what_was_found(output: Any, shown: str) -> None:
    with pytest.raises(TypeError, match=f"DDPMPipeline returned.*{shown}.*; pass decoder="):
        read_media(PIPE, output)


@pytest.mark.parametrize(
    ("output", "content"),
    [
        (IFPipelineOutput(PIL, [False, True, False, True], None), lambda output: output.images),
        (ImagePipelineOutput(NUMPY), lambda output: output.images),
        (ImagePipelineOutput(PIXELS), lambda output: output.images),
        ((PIXELS, None), lambda output: output[0]),
        (PIL, lambda output: output),
        (StableVideoDiffusionPipelineOutput([[p] for p in PIL]), lambda output: output.frames),
        (AudioPipelineOutput(NUMPY[:, 0]), lambda output: output.audios),
        (LTX2PipelineOutput(CLIPS.flatten(0, 1), PIXELS[:, 0]), lambda output: output.audio),
    ],
    ids=["PIL", "numpy", "torch", "tuple", "bare", "clips", "numpy sound", "two media"],
)
@pytest.mark.parametrize("rows", [[2], [3, 0], [1, 1]])
def test_rows_of_an_output_are_picked_in_order(
    output: Any, content: Callable[[Any], Any], rows: list[int]
) -> None:
    picked = pick(output, rows, 4)
    assert type(picked) is type(output)
    assert len(content(picked)) == len(rows)
    for found, row in zip(content(picked), rows, strict=True):
        assert np.array_equal(np.asarray(found), np.asarray(content(output)[row]))


def test_flags_go_with_their_images_and_what_has_no_rows_stays() -> None:
    picked = pick(IFPipelineOutput(PIL, [False, True, False, True], None), [3, 2], 4)
    assert picked.nsfw_detected == [True, False] and picked.watermark_detected is None
    assert list(picked.keys()) == ["images", "nsfw_detected"]
    assert picked[0][0] is PIL[3]
    text = LLaDA2PipelineOutput(torch.arange(8).reshape(4, 2), ["a", "b", "c", "d"])
    assert pick(text, [1], 4).texts == ["b"]
    assert pick(text, [1], 4).sequences.tolist() == [[2, 3]]


def test_all_rows_in_order_are_the_output_itself() -> None:
    output = WanPipelineOutput(frames=PIL)
    assert pick(output, [0], 1) is output


def test_an_output_of_another_number_of_rows_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"has 3 rows, got \(images: \(4, 3, 2, 5\) torch.float32\)"
    ):
        pick(ImagePipelineOutput(PIXELS), [0], 3)


@pytest.mark.parametrize(("output_type"), ["pil", "np", "pt"])
def test_a_real_pipeline_is_read_in_every_output_type(output_type: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8,
            block_out_channels=(4, 4),
            norm_num_groups=2,
            attention_head_dim=4,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        )
    pipe = DDPMPipeline(unet, DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)

    def made(kind: str) -> Images:
        output = pipe(2, torch.Generator().manual_seed(0), 2, output_type=kind)
        samples = read_media(pipe, output)
        assert isinstance(samples, Images)
        return samples

    assert torch.allclose(made(output_type).pixels, made("pt").pixels, atol=0.5 / 255 + 1e-6)
