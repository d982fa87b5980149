"""Networks that several rewards look through: pretrained ones are loaded once.

A reward is often a small head or a dot product on a large network, and rewards are combined: two
aesthetic heads, a score and an embedding for a set reward all stand on the same CLIP model. Each
asks for it by class and source, and they get one copy.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreward.loading import check_source

Network = TypeVar("Network", bound=nn.Module)

# Weak: a network lives as long as a reward that uses it.
_LOADED: WeakValueDictionary[tuple[type, str], nn.Module] = WeakValueDictionary()
# Rewards may be called from threads; two loads at once would also mix their random states.
_LOADING = threading.RLock()


def load_once(kind: type, source: str, load: Callable[[str], Network]) -> Network:
    """The network of this kind and source: frozen, in float32, in evaluation mode.

    It is the same object for all who ask in this process, as long as one of them holds it, so it
    must not be changed; who calls it moves it to the device of the inputs first. Loading draws no
    random numbers, and what is loaded in inference mode can be differentiated through later.

    Args:
        kind: the class of the network, or another class that tells this use of a source from
            others. All who name one kind load it in the same way.
        source: where its weights come from: a folder, a file, or the id of a hub repository.
            Different names of one folder are one source.
        load: makes the network from the source, in float32 where that changes what it computes:
            what was made of rounded numbers stays so.
    """
    source = _absolute(source)
    with _LOADING:
        network = _LOADED.get((kind, source))
        if network is None:
            # New parameters draw random numbers, and would stay inference tensors.
            with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
                network = load(source).float().eval().requires_grad_(False)
            _LOADED[kind, source] = network
    return network  # type: ignore[return-value]  # what `load` made when this kind came first


def locate(source: str, marker: str = "config.json") -> str:
    """The absolute path of a folder, or the hub id: the same after a change of directory.

    Args:
        source: a folder, or a hub id such as ``org/name``.
        marker: a file that a folder of this kind holds.

    Raises:
        FileNotFoundError: if the source can only be meant as a folder, and is none of this kind.
    """
    expanded = os.path.expanduser(source)  # pathlib would drop the dot of ./org/name
    check_source(expanded, marker)
    return _absolute(expanded)


def features(output: Any) -> Tensor:
    """The projected features, (B, D), that `get_image_features` and the like returned.

    transformers returned them themselves before version 5, and a record that holds them since.
    """
    return output if isinstance(output, Tensor) else output.pooler_output


def halving_blocks(widths: Sequence[int]) -> nn.Sequential:
    """Convolutions that halve height and width at each change of channels, (B, widths[0], H, W).

    Args:
        widths: channels, from those of the input to those of the output.
    """

    def block(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()),
            *(nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()),
        )

    return nn.Sequential(*(block(*ends) for ends in pairwise(widths)))


def language_model(kind: str, source: str) -> tuple[Any, Any]:
    """A model of texts in float32, where it is fastest, and its tokenizer.

    Texts are strings and know no device: who asks sends its tokens to that of the model.

    Args:
        kind: the class of transformers that loads it, such as ``"AutoModelForCausalLM"``.
        source: a hub id or a folder, as `locate` returns it.
    """
    import transformers

    loader = getattr(transformers, kind)
    model = load_once(loader, source, lambda s: loader.from_pretrained(s, dtype=torch.float32))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device), transformers.AutoTokenizer.from_pretrained(source)


def clip_image_tower(source: str) -> Any:
    """The image tower of a CLIP model with its projection, of transformers.

    Args:
        source: a hub id or a folder, as `locate` returns it.
    """
    from transformers import CLIPVisionModelWithProjection as Tower

    return load_once(Tower, source, lambda s: Tower.from_pretrained(s, dtype=torch.float32))


@dataclass(frozen=True)
class OpenClip:
    """A CLIP model of open_clip and its tokenizer. Embeddings are of length 1, float32."""

    model: Any
    tokenizer: Callable[[list[str]], Tensor]

    def embed_images(self, inputs: Tensor) -> Tensor:
        """(B, D), of preprocessed images, (B, 3, H, W), on the device of the model."""
        return F.normalize(self.model.encode_image(inputs).float(), dim=-1)

    def embed_text(self, text: str) -> Tensor:
        """(D,), of a text, cut off at the model's context."""
        tokens = self.tokenizer([text]).to(self.model.logit_scale.device)
        return F.normalize(self.model.encode_text(tokens)[0].float(), dim=-1)


def open_clip_model(name: str, pretrained: str | None) -> OpenClip:
    """A CLIP model of open_clip with its weights.

    Args:
        name: one of open_clip's, or one that begins with ``hf-hub:`` or ``local-dir:``.
        pretrained: tag or file of the weights; None where the name says it all.

    Raises:
        ImportError: if open_clip is missing.
        RuntimeError: if there are no such weights.
    """
    import open_clip

    # The name ViT-L-14 is plain GELU to open_clip, which only warns that OpenAI's weights are not.
    published = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    quick_gelu = bool(published.get("quick_gelu"))

    def load(source: str) -> nn.Module:
        return open_clip.create_model(  # type: ignore[no-any-return]
            name, pretrained, force_quick_gelu=quick_gelu, require_pretrained=True
        )

    model = load_once(open_clip.CLIP, f"{name} {pretrained}", load)
    return OpenClip(model, open_clip.get_tokenizer(name))


class EmbeddedTexts:
    """Embeddings of texts, each computed once and kept on the CPU.

    Each text is embedded alone, in float32 and without gradient: what is kept must not depend on
    the call in which the text first came. Copies start empty.

    Args:
        size: texts to keep; those not asked for the longest are forgotten first.
    """

    def __init__(self, size: int = 10_000) -> None:
        self.size = size
        self._rows: dict[str, Tensor] = {}

    def __call__(
        self, texts: Sequence[str], embed: Callable[[str], Tensor], device: torch.device
    ) -> Tensor:
        """The embeddings of B texts, (B, ...), on a device.

        Args:
            texts: one or more.
            embed: of one text, (...); always the same function for one memory.
            device: where it computes, and where the result goes.
        """
        return torch.stack([self._row(text, embed, device) for text in texts]).to(device)

    def _row(self, text: str, embed: Callable[[str], Tensor], device: torch.device) -> Tensor:
        row = self._rows.pop(text, None)
        if row is None:
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                row = embed(text).cpu()
        self._rows[text] = row  # a dictionary keeps the order in which it was filled
        if len(self._rows) > self.size:
            del self._rows[next(iter(self._rows))]
        return row

    def __getstate__(self) -> dict[str, Any]:
        # A copy embeds by itself what it is asked for.
        return {"size": self.size, "_rows": {}}


def _absolute(source: str) -> str:
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source
