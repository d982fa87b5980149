"""What travels between a run and a reward server: lossless, and nothing that could be executed.

A request is one safetensors file: the tensors of the samples, bit for bit, and JSON under the key
`diffreward` of its metadata with all the rest. An answer is JSON. Whoever can write these two can
serve a reward from any language:

- ``GET /spec`` gives a `Spec`;
- ``POST /score`` takes a `Request` and gives an `Answer`, or another status than 200 and
  ``{"detail": text}``;
- if there is a token, both want the header ``Authorization: Bearer <token>``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from diffreward.samples import Samples

VERSION = 1
"""Of this protocol: both sides speak the same one."""

TOKEN_VARIABLE = "DIFFREWARD_TOKEN"
"""The environment variable that holds the token, unless another one is named."""

Decoded = TypeVar("Decoded")


class ProtocolError(ValueError):
    """Something is no request, no answer or no spec; the message says what is wrong with it."""


@dataclass(frozen=True)
class Spec:
    """What a server says of itself.

    Args:
        protocol: version that it speaks.
        diffreward: version that it runs, for messages.
        reward: name of what it serves.
        identity: differs between rewards that are not the same, or are set up in another way.
        kinds: of samples that it can read.
    """

    protocol: int
    diffreward: str
    reward: str
    identity: str
    kinds: tuple[str, ...]

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, body: bytes) -> Spec:
        """What `encode` gave; a newer server may say more.

        Raises:
            ProtocolError: if something is missing or of another type.
        """
        found = _object(body)
        return cls(
            protocol=_entry(found, "protocol", int),
            diffreward=_entry(found, "diffreward", str),
            reward=_entry(found, "reward", str),
            identity=_entry(found, "identity", str),
            kinds=tuple(_entry(found, "kinds", list)),
        )


@dataclass(frozen=True)
class Request:
    """B samples to be scored.

    Args:
        samples: of any kind; tensors, strings, numbers and tuples of the latter two may be in it.
        prompts: B strings.
        identity: of the reward that is meant, from its `Spec`.
        id: equal for a request that is sent again, and for no other.
    """

    samples: Samples
    prompts: tuple[str, ...]
    identity: str
    id: str

    def encode(self) -> bytes:
        """As a safetensors file; the tensors without their graph and their device.

        Raises:
            ProtocolError: if the samples hold something that is no tensor, string or number.
        """
        values = {field.name: getattr(self.samples, field.name) for field in fields(self.samples)}
        tensors = {name: v for name, v in values.items() if isinstance(v, Tensor)}
        header = {
            "version": VERSION,
            "kind": type(self.samples).__name__,
            "fields": {name: v for name, v in values.items() if name not in tensors},
            "prompts": self.prompts,
            "identity": self.identity,
            "id": self.id,
        }
        try:
            text = json.dumps(header)
        except TypeError as error:
            raise ProtocolError(f"{header['kind']} cannot travel: {error}") from error
        plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        return safetensors.torch.save(plain, {"diffreward": text})

    @classmethod
    def decode(cls, body: bytes) -> Request:
        """What `encode` gave, with its tensors on the CPU.

        Raises:
            ProtocolError: if it is of another version, damaged, or does not describe samples.
        """
        header = _header(body)
        version = _entry(header, "version", int)
        if version != VERSION:
            raise ProtocolError(f"this is protocol {VERSION}, the request is in {version}")
        kind, kinds = _entry(header, "kind", str), known_kinds()
        if kind not in kinds:
            raise ProtocolError(f"samples of kind {kind} are not known here, only {[*kinds]}")
        values = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in _entry(header, "fields", dict).items()
        }
        prompts = tuple(_entry(header, "prompts", list))
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ProtocolError("the prompts are not all strings")
        try:
            samples = kinds[kind](**values, **safetensors.torch.load(body))
            rows = len(samples)
        except (SafetensorError, TypeError, ValueError) as error:
            raise ProtocolError(f"the request holds no {kind}: {error}") from error
        if rows != len(prompts):
            raise ProtocolError(f"got {rows} samples and {len(prompts)} prompts")
        return cls(samples, prompts, _entry(header, "identity", str), _entry(header, "id", str))


@dataclass(frozen=True)
class Answer:
    """The scores of a request.

    Args:
        id: of the request.
        scores: B numbers, None = no score.
        errors: what went wrong with samples that have no score for this reason, by row.
    """

    id: str
    scores: tuple[float | None, ...]
    errors: Mapping[int, str]

    def encode(self) -> bytes:
        """As JSON; float32 scores come back as the same float32."""
        return json.dumps(asdict(self), allow_nan=False).encode()

    @classmethod
    def decode(cls, body: bytes, request: Request) -> Answer:
        """What `encode` gave, held to the request that it answers.

        Raises:
            ProtocolError: if it answers another one, or has not one finite number or null per
                sample.
        """
        found = _object(body)
        if found.get("id") != request.id:
            raise ProtocolError("the answer is that to another request")
        scores = _entry(found, "scores", list)
        if len(scores) != len(request.prompts) or not all(map(_is_score, scores)):
            raise ProtocolError(
                f"the answer has no {len(request.prompts)} finite numbers or nulls: {scores!r:.200}"
            )
        errors = _entry(found, "errors", dict)
        if not all(row.isdecimal() for row in errors):
            raise ProtocolError(f"errors are told by row, got {[*errors]!r:.200}")
        return cls(request.id, tuple(scores), {int(row): str(e) for row, e in errors.items()})


def known_kinds() -> dict[str, type[Samples]]:
    """All kinds of samples that have been imported, by name."""

    def below(kind: type[Samples]) -> Iterator[type[Samples]]:
        for each in kind.__subclasses__():
            yield each
            yield from below(each)

    return {kind.__name__: kind for kind in below(Samples)}


def _header(body: bytes) -> dict[str, Any]:
    """The JSON in the metadata of a safetensors file: a length of 8 bytes, then its own header."""
    length = int.from_bytes(body[:8], "little")
    if len(body) < 8 + length:
        raise ProtocolError("the request ends before its header does")
    metadata = _entry(_object(body[8 : 8 + length]), "__metadata__", dict)
    return _object(_entry(metadata, "diffreward", str).encode())


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError as error:
        raise ProtocolError(f"this is no JSON: {body[:200]!r}") from error
    if not isinstance(found, dict):
        raise ProtocolError(f"this is no JSON object: {body[:200]!r}")
    return found


def _entry(found: Mapping[str, Any], name: str, kind: type[Decoded]) -> Decoded:
    value = found.get(name)
    if not isinstance(value, kind):
        raise ProtocolError(f"{name} is a {kind.__name__}, got {value!r:.200}")
    return value


def _is_score(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
