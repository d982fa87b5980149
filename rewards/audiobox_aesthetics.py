"""Audiobox Aesthetics: how people would rate a sound, be it speech, music or anything else.

Source: Tjandra et al. (2025), arXiv:2502.05139, and the repository
facebookresearch/audiobox-aesthetics. The layers of a WavLM (Chen et al., 2022, arXiv:2110.13900)
are averaged with learned weights and over time, and a small network reads the rating from the
direction of that vector. The published program computes without gradients, and its WavLM would
multiply those of the waves by 0.1; here they are what they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreward.audio.resampling import mono
from diffreward.audio.windows import trailing_windows
from diffreward.backbones import load_once, locate
from diffreward.reward import Reward
from diffreward.samples import Samples

_RATE = 16_000
_WINDOW = 10 * _RATE
_AXES = ("CE", "CU", "PC", "PQ")

# Parts of names in the checkpoint, and what transformers calls them.
_NAMES = (
    (r"conv_layers\.(\d+)\.0\.", r"conv_layers.\1.conv."),
    (r"conv_layers\.0\.2\.", "conv_layers.0.layer_norm."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"pos_conv\.0\.bias", "pos_conv_embed.conv.bias"),
    (r"pos_conv\.0\.weight_g", "pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"pos_conv\.0\.weight_v", "pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"self_attn_layer_norm\.", "layer_norm."),
    (r"self_attn\.grep_linear\.", "attention.gru_rel_pos_linear."),
    (r"self_attn\.grep_a", "attention.gru_rel_pos_const"),
    (r"self_attn\.relative_attention_bias\.", "attention.rel_attn_embed."),
    (r"self_attn\.", "attention."),
    (r"fc1\.", "feed_forward.intermediate_dense."),
    (r"fc2\.", "feed_forward.output_dense."),
)


class AudioboxAesthetics(Reward):
    """A rating, about 1 (low) to 10. Differentiable in the waves.

    A sound is mixed down to mono, brought to 16 kHz and cut into windows of 10 s, the last of them
    filled up with silence that is not listened to; their ratings are averaged, each by the length
    of its sound. A gradient holds some 1 GB for every 10 s. Rewards of several axes share one
    copy of the model.

    Args:
        model: a hub id or a folder with ``config.json`` and ``model.safetensors``, or the file
            ``checkpoint.pt`` of the authors; loaded by the first call.
        axis: ``"CE"`` content enjoyment, ``"CU"`` content usefulness, ``"PC"`` production
            complexity (how many things sound, which is neither good nor bad), or ``"PQ"``
            production quality.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: if there is no such axis; by the first call, if the weights are of another
            model.
    """

    def __init__(
        self,
        model: str = "facebook/audiobox-aesthetics",
        axis: Literal["CE", "CU", "PC", "PQ"] = "CE",
    ) -> None:
        if axis not in _AXES:
            raise ValueError(f"axis is one of {_AXES}, got {axis!r}")
        path = Path(model).expanduser()
        self.model = str(path.absolute()) if path.is_file() else locate(model)
        self.axis = axis
        self._network: _Network | None = None

    def __call__(self, samples: Samples, prompts: Sequence[str]) -> Tensor:
        waves = mono(samples, _RATE)
        if self._network is None:
            self._network = load_once(_Network, self.model, _load)
        network = self._network.to(waves.device)
        windows = trailing_windows(waves, _WINDOW, _WINDOW)
        starts = torch.arange(windows.shape[1], device=waves.device) * _WINDOW
        lengths = (waves.shape[1] - starts).clamp(max=_WINDOW)
        with torch.autocast(waves.device.type, enabled=False):
            ratings: Tensor = network(windows.flatten(0, 1), lengths.repeat(len(waves)), self.axis)
        return (ratings.reshape(windows.shape[:2]) * lengths).sum(1) / lengths.sum()

    def __getstate__(self) -> dict[str, Any]:
        # A copy, also in another process, loads the network by itself when first called.
        return {**self.__dict__, "_network": None}


class _Network(nn.Module):
    """WavLM and a head for each axis, of the sizes of the weights.

    Args:
        config: ``target_transform``, the mean and the standard deviation of the ratings of each
            axis, and ``normalize_embed``, whether the heads see directions only.
        state: the weights by their names in the checkpoint.
    """

    def __init__(self, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        from transformers import WavLMModel

        super().__init__()
        self.ratings = {axis: config["target_transform"][axis] for axis in _AXES}
        self.directions = bool(config["normalize_embed"])
        self.layer_weights = nn.ParameterDict(
            {axis: nn.Parameter(state[f"layer_weights.{axis}"]) for axis in _AXES}
        )
        self.heads = nn.ModuleDict(
            {axis: _head(_below(state, f"proj_layer.{axis}.")) for axis in _AXES}
        )
        wavlm = _below(state, "wavlm_model.")
        self.wavlm = WavLMModel(_wavlm_config(wavlm))
        self.wavlm.load_state_dict(_renamed(wavlm))

    def forward(self, windows: Tensor, lengths: Tensor, axis: str) -> Tensor:
        """The ratings of windows, (N, T), of which the first samples are sound, (N,) -> (N,)."""
        features = self.wavlm.feature_extractor(windows).mT
        frames = features.shape[1]
        # A step belongs to the sound if any sample of its share of the window does.
        starts = torch.arange(frames, device=windows.device) * (windows.shape[1] // frames)
        heard = starts < lengths[:, None]
        layers = torch.stack(self._layers(self.wavlm.feature_projection(features)[0], heard))
        weights = self.layer_weights[axis].softmax(0)
        steps = torch.einsum("lntd,l->ntd", layers, weights) * heard[..., None]
        embedding = steps.sum(1) / heard.sum(1, keepdim=True)
        if self.directions:
            embedding = F.normalize(embedding, dim=-1)
        scale = self.ratings[axis]
        rating: Tensor = self.heads[axis](embedding).squeeze(1) * scale["std"] + scale["mean"]
        return rating

    def _layers(self, features: Tensor, heard: Tensor) -> list[Tensor]:
        """What enters the transformer and what each of its layers returns, each (N, F, D).

        transformers' own loop rounds the length of a sound to steps in another way.
        """
        encoder = self.wavlm.encoder
        x = features * heard[..., None]
        x = encoder.layer_norm(x + encoder.pos_conv_embed(x))
        layers, bias = [x], None
        for layer in encoder.layers:
            x, bias = layer(x, attention_mask=heard, position_bias=bias)[:2]
            layers.append(x)
        return layers


def _head(state: Mapping[str, Tensor]) -> nn.Sequential:
    """Linear layers with GELU between them, each but the last with or without LayerNorm."""
    layers: list[nn.Module] = []
    for place in sorted({int(name.partition(".")[0]) for name in state}):
        weight, bias = state[f"{place}.weight"], state[f"{place}.bias"]
        layer: nn.Module
        if weight.ndim == 1:
            layer = nn.LayerNorm(len(weight))
        else:
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layers += [nn.GELU()] if layers else []
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    return nn.Sequential(*layers)


def _wavlm_config(state: Mapping[str, Tensor]) -> Any:
    """WavLM-base: what shapes do not tell is the same for all of them."""
    from transformers import WavLMConfig

    kernels = [state[f"feature_extractor.conv_layers.{i}.0.weight"] for i in range(7)]
    positions = state["encoder.pos_conv.0.weight_v"]
    buckets = state["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    return WavLMConfig(
        hidden_size=len(positions),
        num_hidden_layers=len([name for name in state if name.endswith(".fc1.bias")]),
        num_attention_heads=buckets.shape[1],
        intermediate_size=len(state["encoder.layers.0.fc1.bias"]),
        conv_dim=[len(kernel) for kernel in kernels],
        conv_kernel=[kernel.shape[2] for kernel in kernels],
        conv_stride=[5, 2, 2, 2, 2, 2, 2],
        num_conv_pos_embeddings=positions.shape[2],
        num_conv_pos_embedding_groups=len(positions) // positions.shape[1],
        num_buckets=len(buckets),
        max_bucket_distance=800,
        mask_time_prob=0.0,
    )


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, weight in state.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = weight
    # Stands for what is masked in pretraining.
    renamed.pop("mask_emb", None)
    return renamed


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state dict whose names begin so, without that beginning."""
    return {
        name.removeprefix(prefix): weight
        for name, weight in state.items()
        if name.startswith(prefix)
    }


def _load(source: str) -> _Network:
    """Raises ValueError if the source holds another model."""
    try:
        return _Network(*_read(source))
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{source} does not hold Audiobox Aesthetics: {error!r}") from error


def _read(source: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the weights of a file, a folder or a repository of the hub."""
    if Path(source).is_file():
        saved = torch.load(source, map_location="cpu", weights_only=True)
        config = {**saved["model_cfg"], "target_transform": saved["target_transform"]}
        return config, {name.removeprefix("model."): w for name, w in saved["state_dict"].items()}
    from safetensors.torch import load_file

    config_file, weights = (_file(source, name) for name in ("config.json", "model.safetensors"))
    return json.loads(Path(config_file).read_text(encoding="utf-8")), load_file(weights)


def _file(source: str, name: str) -> str:
    if Path(source).is_dir():
        return str(Path(source) / name)
    from huggingface_hub import hf_hub_download

    return hf_hub_download(source, name)
