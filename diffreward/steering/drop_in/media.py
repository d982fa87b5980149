"""What a pipeline of diffusers returned, read as samples: any class, field, format and layout.

Source: diffusers 0.42.1, the classes of outputs and the ends of the pipelines' ``__call__``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import singledispatch
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffreward.alphabets import ids_of
from diffreward.samples import Audio, Images, Samples, Texts, Tokens, Videos

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Output = TypeVar("Output")

_SIGNED = frozenset(
    {
        "IFImg2ImgPipeline",
        "IFImg2ImgSuperResolutionPipeline",
        "IFInpaintingPipeline",
        "IFInpaintingSuperResolutionPipeline",
        "IFPipeline",
        "IFSuperResolutionPipeline",
        "Kandinsky3Pipeline",
        "KandinskyCombinedPipeline",
        "KandinskyInpaintCombinedPipeline",
        "KandinskyInpaintPipeline",
        "KandinskyPipeline",
        "KandinskyV22CombinedPipeline",
        "KandinskyV22ControlnetPipeline",
        "KandinskyV22InpaintCombinedPipeline",
        "KandinskyV22InpaintPipeline",
        "KandinskyV22Pipeline",
        "LTXI2VLongMultiPromptPipeline",
        "PRXPixelPipeline",
    }
)
"""Their ``output_type="pt"`` is what the network gave, in [-1, 1]; all others' is in [0, 1]."""

_SOUNDING = ("vocoder", "sound_tokenizer", "audio_vae", "vae", "unet")
"""Components that may make the sound, the last of a chain of them first."""

_RATES = ("output_sampling_rate", "sampling_rate", "sample_rate")
"""Under which their configurations say how many samples per second come out."""


def read_media(pipe: DiffusionPipeline, output: Any) -> Samples:
    """The images, videos, sounds or texts that the pipeline returned, in this order of preference.

    Strings and ids of a pipeline with an attribute `alphabet` are sequences: `Tokens`.

    Torch tensors keep their device, dtype and gradient; PIL images and numpy arrays come on the
    CPU. Grey pictures become RGB. A video that comes with sound is read without it.

    Args:
        pipe: what returned the output; it knows the rate of its sounds and the words of its tokens.
        output: an output class, or with ``return_dict=False`` a tuple, of which the first entry
            that is not None is read.

    Raises:
        TypeError: if the output has no media that can be read, such as latents or meshes.
        ValueError: if pixels are outside [0, 1].
    """
    found = {name: value for name, value in _fields(output).items() if value is not None}
    named = is_dataclass(output)
    name = next((name for name in (_READERS if named else found) if name in found), None)
    if name is not None:
        for read in (_READERS[name],) if named else dict.fromkeys(_READERS.values()):
            samples = read(pipe, found[name])
            if samples is not None:
                return samples
    shown = ", ".join(f"{name}: {_shown(value)}" for name, value in found.items())
    raise TypeError(
        "cannot read images, videos, sounds of a known rate or texts from what "
        f"{type(pipe).__name__} returned, ({shown}); pass decoder="
    )


def pick(output: Output, rows: Sequence[int], total: int) -> Output:
    """The output with some of its rows, in the order of `rows`; what has no rows stays.

    Args:
        output: of a pipeline: an output class, or a tuple.
        rows: numbers below `total`; they may repeat.
        total: how many samples the pipeline made. A list, array or tensor of this length has one
            entry per sample.

    Raises:
        ValueError: if nothing in the output has `total` rows.
    """
    if list(rows) == list(range(total)):
        return output
    found = _fields(output)
    picked = {name: _picked(value, rows) for name, value in found.items() if _count(value) == total}
    if not picked:
        shown = ", ".join(f"{name}: {_shown(value)}" for name, value in found.items())
        raise ValueError(f"one entry of the output has {total} rows, got ({shown})")
    if is_dataclass(output) and not isinstance(output, type):
        return replace(output, **picked)
    values = tuple(picked.get(name, value) for name, value in found.items())
    return values if isinstance(output, tuple) else values[0]  # type: ignore[return-value]


def _fields(output: Any) -> dict[str, Any]:
    if is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    # Some pipelines return the media itself in place of a tuple of one.
    values = output if isinstance(output, tuple) else (output,)
    return {str(i): value for i, value in enumerate(values)}


def _count(value: Any) -> int | None:
    if isinstance(value, Tensor | np.ndarray):
        return len(value) if value.ndim else None
    return len(value) if isinstance(value, list) else None


def _picked(value: Any, rows: Sequence[int]) -> Any:
    return [value[row] for row in rows] if isinstance(value, list) else value[list(rows)]


def _shown(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{tuple(value.shape)} {value.dtype}"
    if isinstance(value, list) and value:
        return f"{len(value)} of {_shown(value[0])}"
    if isinstance(value, Image.Image):
        return f"{value.mode} picture of {value.width} x {value.height}"
    return type(value).__name__


def _read_images(pipe: DiffusionPipeline, value: Any) -> Images | None:
    pixels = _tensor(value)
    if pixels is None or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        return None
    return Images(_rgb(pipe, pixels, isinstance(value, Tensor)))


def _read_videos(pipe: DiffusionPipeline, value: Any) -> Videos | None:
    frames = _tensor(value)
    if frames is not None and frames.ndim == 4 and frames.shape[1] in (1, 3):
        # A pipeline that makes one video at a time may return its frames alone.
        frames = frames[None]
    if frames is None or frames.ndim != 5:
        return None
    channels = [axis for count in (3, 1) for axis in (2, 1) if frames.shape[axis] == count]
    if not channels:
        return None
    return Videos(_rgb(pipe, frames.movedim(channels[0], 2), isinstance(value, Tensor)))


def _read_audio(pipe: DiffusionPipeline, value: Any) -> Audio | None:
    if not isinstance(value, Tensor | np.ndarray):
        return None
    waves = torch.as_tensor(value)
    if waves.ndim == 2:
        waves = waves[:, None]
    # More than two channels are those of latents.
    if waves.ndim != 3 or waves.shape[1] not in (1, 2) or not waves.is_floating_point():
        return None
    parts = [part for part in map(_components(pipe).get, _SOUNDING) if part is not None]
    configs = [vars(part.config) for part in parts]
    rates = [config[name] for config in configs for name in _RATES if config.get(name)]
    return Audio(waves, int(rates[0])) if rates else None


def _read_texts(pipe: DiffusionPipeline, value: Any) -> Texts | Tokens | None:
    """Strings; those of a pipeline with an alphabet are sequences over it."""
    if not isinstance(value, list) or {type(text) for text in value} != {str}:
        return None
    alphabet = _components(pipe).get("alphabet")
    if alphabet is None:
        return Texts(tuple(value))
    return Tokens(torch.tensor(ids_of(value, alphabet)), alphabet)


def _read_sequences(pipe: DiffusionPipeline, value: Any) -> Texts | Tokens | None:
    """Token ids (B, L), read to their first end of a sequence, as the pipelines decode them."""
    if not isinstance(value, Tensor) or value.ndim != 2 or value.is_floating_point():
        return _read_texts(pipe, value)
    components = _components(pipe)
    if "alphabet" in components:
        return Tokens(value, components["alphabet"])
    tokenizer, processor = components.get("tokenizer"), components.get("processor")
    if tokenizer is None and processor is not None:
        tokenizer = processor.tokenizer
    if tokenizer is None:
        return None
    end = tokenizer.eos_token_id
    rows = [row[: row.index(end) + 1] if end in row else row for row in value.tolist()]
    return Texts(tuple(tokenizer.batch_decode(rows, skip_special_tokens=True)))


def _components(pipe: DiffusionPipeline) -> Mapping[str, Any]:
    # `pipe.components` leaves out those that the pipeline's constructor has a default for.
    components: Mapping[str, Any] = vars(pipe)
    return components


def _rgb(pipe: DiffusionPipeline, pixels: Tensor, torch_output: bool) -> Tensor:
    """Pixels (..., 1 or 3, H, W) of the pipeline as (..., 3, H, W) in [0, 1].

    Raises:
        ValueError: if a pixel is outside.
    """
    if pixels.dtype == torch.uint8:
        pixels = pixels / 255
    if torch_output and not _SIGNED.isdisjoint(kind.__name__ for kind in type(pipe).__mro__):
        # What these pipelines do themselves for numpy and PIL.
        pixels = (pixels / 2 + 0.5).clamp(0, 1)
    # Latents of three channels, or of one or three frames, give themselves away here only.
    if bool(((pixels < 0) | (pixels > 1)).any()):
        low, high = pixels.min().item(), pixels.max().item()
        raise ValueError(
            f"{type(pipe).__name__} returned pixels in [{low:.3g}, {high:.3g}], expected [0, 1]: "
            "these are latents, or scaled in another way; pass output_type='np' or decoder="
        )
    return pixels.expand(*pixels.shape[:-3], 3, *pixels.shape[-2:])


@singledispatch
def _tensor(value: Any) -> Tensor | None:
    """Pictures of any format as a tensor that ends in (C, H, W); None if they are no pictures."""
    return None


@_tensor.register
def _(value: Tensor) -> Tensor | None:
    return value


@_tensor.register
def _(value: np.ndarray) -> Tensor | None:
    return torch.from_numpy(value).movedim(-1, -3) if value.ndim >= 3 else None


@_tensor.register
def _(value: Image.Image) -> Tensor | None:
    if value.mode not in ("L", "RGB"):
        return None
    return torch.from_numpy(np.array(value.convert("RGB"))).movedim(-1, -3)


@_tensor.register(list)
def _(value: list[Any]) -> Tensor | None:
    parts = [part for part in map(_tensor, value) if part is not None]
    if not parts or len(parts) < len(value) or len({part.shape for part in parts}) > 1:
        return None
    return torch.stack(parts)


_READERS: Mapping[str, Callable[[DiffusionPipeline, Any], Samples | None]] = {
    "images": _read_images,
    "image": _read_images,
    "frames": _read_videos,
    "video": _read_videos,
    "audios": _read_audio,
    "audio": _read_audio,
    "texts": _read_texts,
    "text": _read_texts,
    "sequences": _read_sequences,
}
"""How the fields of outputs are read, the first first."""
