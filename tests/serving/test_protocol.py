"""What is sent is what arrives, and nothing else is taken for it."""

import json
import struct
from dataclasses import dataclass, fields

import pytest
import safetensors.torch
import torch
from torch import Tensor

from diffreward.random import stream
from diffreward.samples import Audio, Images, Samples, Texts, Tokens, Vectors, Videos
from diffreward.serving.protocol import VERSION, Answer, ProtocolError, Request, Spec


@dataclass(frozen=True)
class Verses(Samples):
    """A kind that a user has added: a tensor, a tuple, a number, a string and nothing."""

    lines: tuple[str, ...]
    beats: Tensor
    tempo: float
    metre: str
    author: str | None = None


def uniform(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=stream(0)).to(dtype)


KINDS = {
    "images": Images(uniform(2, 3, 4, 5)),
    "images in float16": Images(uniform(2, 3, 4, 5, dtype=torch.float16)),
    "images in bfloat16": Images(uniform(2, 3, 4, 5, dtype=torch.bfloat16)),
    "images in float64": Images(uniform(2, 3, 4, 5, dtype=torch.float64)),
    "images that are no block of memory": Images(uniform(2, 4, 5, 3).permute(0, 3, 1, 2)),
    "one image seen twice": Images(uniform(1, 3, 4, 5).expand(2, -1, -1, -1)),
    "videos": Videos(uniform(2, 3, 3, 4, 4), fps=1 / 3),
    "audio": Audio(uniform(2, 1, 9) * 2 - 1, rate=44_100),
    "texts": Texts(("naïve\n", 'a "quoted" \U0001f600 \ud800')),
    "tokens": Tokens(torch.tensor([[0, 3], [1, 2]]), "ACGT"),
    "relaxed tokens": Tokens(uniform(2, 3, 4), "ACGT"),
    "vectors": Vectors(torch.tensor([[-0.0, torch.inf], [torch.nan, 1e-45]])),
    "a user's kind": Verses(("one", ""), torch.tensor([True, False]), 1e-300, "iamb"),
}


def request(samples: Samples, prompts: tuple[str, ...] = ("a cat", "ein Bär")) -> Request:
    return Request(samples, prompts, "identity", "id")


def bits(value: object) -> object:
    """What equal values have in common, to the last bit: NaN is itself, and -0 is not 0."""
    if not isinstance(value, Tensor):
        return type(value), repr(value)
    return value.dtype, value.shape, value.contiguous().numpy(force=True).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_samples_arrive_bit_for_bit(kind: str) -> None:
    sent = KINDS[kind]
    found = Request.decode(request(sent).encode())
    assert type(found.samples) is type(sent)
    for field in fields(sent):
        one, other = (getattr(samples, field.name) for samples in (sent, found.samples))
        if isinstance(one, Tensor) and one.dtype == torch.bfloat16:
            one, other = one.view(torch.int16), other.view(torch.int16)
        assert bits(one) == bits(other)
    assert (found.prompts, found.identity, found.id) == (("a cat", "ein Bär"), "identity", "id")


def test_no_samples_are_samples() -> None:
    found = Request.decode(request(Images(torch.zeros(0, 3, 4, 4)), ()).encode())
    assert found.samples.pixels.shape == (0, 3, 4, 4)


def test_a_graph_stays_behind() -> None:
    pixels = uniform(2, 3, 4, 4).requires_grad_()
    assert torch.equal(Request.decode(request(Images(pixels)).encode()).samples.pixels, pixels)


def test_what_cannot_travel_is_named() -> None:
    thing = Verses(("", ""), torch.zeros(2), 1.0, {1, 2})  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match=r"Verses cannot travel.*set"):
        request(thing).encode()


def altered(**entries: object) -> bytes:
    """A request for two images, with other entries in its header; None leaves one out."""
    body = request(KINDS["images"]).encode()
    with_header = safetensors.torch.load(body)
    length = struct.unpack("<Q", body[:8])[0]
    header = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["diffreward"])
    kept = {name: v for name, v in {**header, **entries}.items() if v is not None}
    return safetensors.torch.save(with_header, {"diffreward": json.dumps(kept)})


WHOLE = request(KINDS["images"]).encode()
BROKEN = {
    "nothing": (b"", "ends before"),
    "a pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00", "ends before"),
    "half a request": (WHOLE[: len(WHOLE) // 2], "holds no Images"),
    "a request with something after it": (WHOLE + b"more", "holds no Images"),
    "tensors alone": (safetensors.torch.save({"pixels": torch.zeros(2)}), "__metadata__"),
    "another version": (altered(version=VERSION + 1), f"protocol {VERSION}, .* in {VERSION + 1}"),
    "an unknown kind": (altered(kind="Sculptures"), "Sculptures are not known.*Images"),
    "no kind": (altered(kind=None), "kind is a str, got None"),
    "a field too many": (altered(fields={"fps": 8}), "holds no Images.*fps"),
    "another kind's tensors": (altered(kind="Videos"), "holds no Videos"),
    "fewer prompts": (altered(prompts=["a cat"]), "2 samples and 1 prompts"),
    "prompts that are none": (altered(prompts=[1, 2]), "not all strings"),
    "the wrong shape": (
        safetensors.torch.save(
            {"pixels": torch.zeros(2, 1, 4, 4)},
            {"diffreward": json.dumps({"version": 1, "kind": "Images",
             "fields": {}, "prompts": ["", ""], "identity": "", "id": ""})},
        ),
        r"\(B, 3, H, W\), got \(2, 1, 4, 4\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_request_is_refused(what: str) -> None:
    body, message = BROKEN[what]
    with pytest.raises(ProtocolError, match=message):
        Request.decode(body)


def test_scores_arrive_bit_for_bit() -> None:
    values = torch.tensor([0.1, -0.0, 1e-45, 3.4028235e38, -1 / 3])
    asked = request(Vectors(values[:, None]), ("",) * 6)
    sent = Answer("id", (*values.tolist(), None), {5: "TypeError: 'x'"})
    found = Answer.decode(sent.encode(), asked)
    assert bits(torch.tensor(found.scores[:5])) == bits(values)
    assert found.scores[5] is None and found.errors == {5: "TypeError: 'x'"}


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"[]",
        b'{"id": "other", "scores": [1, 2], "errors": {}}',
        b'{"id": "id", "scores": [1], "errors": {}}',
        b'{"id": "id", "scores": [1, NaN], "errors": {}}',
        b'{"id": "id", "scores": [1, 1e999], "errors": {}}',
        b'{"id": "id", "scores": [1, "2"], "errors": {}}',
        b'{"id": "id", "scores": [1, true], "errors": {}}',
        b'{"id": "id", "scores": [1, 2]}',
        b'{"id": "id", "scores": [1, 2], "errors": {"first": ""}}',
    ],
)
def test_what_is_no_answer_is_no_score(answer: bytes) -> None:
    with pytest.raises(ProtocolError):
        Answer.decode(answer, request(KINDS["images"]))


def test_a_newer_server_may_say_more() -> None:
    spec = Spec(2, "9.0", "Judge", "abc", ("Images",))
    body = json.dumps({**json.loads(spec.encode()), "mood": "good"}).encode()
    assert Spec.decode(body) == spec
    with pytest.raises(ProtocolError, match="protocol is a int"):
        Spec.decode(b'{"reward": "Judge"}')
