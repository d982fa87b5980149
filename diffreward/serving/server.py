"""The reward server: a reward behind HTTP, in an environment and on a device of its own."""

# Without `annotations` from `__future__`: FastAPI reads them where the functions are defined.

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

import diffreward
from diffreward.reward import RewardFunction, name_of
from diffreward.serving.protocol import (
    TOKEN_VARIABLE,
    VERSION,
    ProtocolError,
    Spec,
    known_kinds,
)
from diffreward.serving.scoring import OtherRewardError, Scorer

if TYPE_CHECKING:
    from fastapi import FastAPI


@dataclass(frozen=True)
class Serving:
    """Where a reward is served, and to whom.

    Args:
        host: address to listen at. Others than those of this machine itself want a token.
        port: to listen at.
        rows: most samples in one call of the reward.
        device: where the samples are scored; ``auto`` takes a GPU if there is one.
        token_variable: environment variable with the token that runs have to show. Without such a
            variable there is no token.
        megabytes: size of the largest request that is read.

    Raises:
        ValueError: if a number is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    rows: int = 16
    device: str = "auto"
    token_variable: str = TOKEN_VARIABLE
    megabytes: int = 1024

    def __post_init__(self) -> None:
        for name in ("rows", "megabytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, got {getattr(self, name)}")
        if not 0 < self.port < 65536:
            raise ValueError(f"a port is 1 to 65535, got {self.port}")


def serve(reward: RewardFunction, serving: Serving, description: str) -> None:
    """Serve a reward until the process is stopped.

    Args:
        reward: what is served.
        serving: where and to whom.
        description: text that tells this reward from others, with its settings.

    Raises:
        ValueError: if others than this machine could use the server and there is no token.
        ImportError: if FastAPI or uvicorn is missing.
    """
    token = os.environ.get(serving.token_variable, "")
    if not token and not _is_local(serving.host):
        raise ValueError(
            f"at {serving.host} everybody on the network could use this server; put a token into "
            f"the environment variable {serving.token_variable}, here and where the run is"
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    app = application(reward, serving, description, token)
    import uvicorn

    uvicorn.run(app, host=serving.host, port=serving.port, access_log=False)


def application(
    reward: RewardFunction, serving: Serving, description: str, token: str = ""
) -> "FastAPI":
    """The server as an ASGI application, for `serve` or a server of one's own.

    Args:
        reward: what is served.
        serving: rows, device and size limit.
        description: text that tells this reward from others, with its settings.
        token: that runs have to show; none if empty.

    Raises:
        ImportError: if FastAPI is missing.
    """
    try:
        from fastapi import FastAPI, HTTPException, Request, Response
    except ImportError as error:
        raise ImportError("serving needs FastAPI: pip install 'diffreward[serve]'") from error

    spec = _spec(reward, description)
    scorer = Scorer(reward, spec.identity, serving.rows, _device(serving.device))
    limit = serving.megabytes * 10**6
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def admit(request: Request) -> None:
        shown = request.headers.get("authorization", "")
        if token and not hmac.compare_digest(shown.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "this server wants a token, and this is not it")

    async def read(request: Request) -> bytes:
        body, size = bytearray(), 0
        async for chunk in request.stream():
            size += len(chunk)
            # Read to its end all the same: who is still sending does not hear an answer.
            body += chunk if size <= limit else b""
        if size > limit:
            raise HTTPException(413, f"requests of up to {serving.megabytes} MB are read here")
        return bytes(body)

    @app.get("/spec")
    async def get_spec(request: Request) -> Response:
        admit(request)
        return Response(spec.encode(), media_type="application/json")

    @app.post("/score")
    async def post_score(request: Request) -> Response:
        admit(request)
        body = await read(request)
        try:
            answer = await asyncio.wrap_future(scorer.ask(body))
        except ProtocolError as error:
            raise HTTPException(400, str(error)) from error
        except OtherRewardError as error:
            raise HTTPException(409, str(error)) from error
        return Response(answer.encode(), media_type="application/json")

    return app


def _spec(reward: RewardFunction, description: str) -> Spec:
    version = diffreward.__version__
    # Scores of another version may be other scores.
    content = json.dumps([version, name_of(reward), description])
    identity = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
    return Spec(VERSION, version, name_of(reward), identity, tuple(known_kinds()))


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name
