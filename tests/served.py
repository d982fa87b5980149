"""A reward server in a thread of the tests, to be stopped and started at the same address."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from diffreward.reward import RewardFunction
from diffreward.serving.server import Serving, application


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def served(
    reward: RewardFunction,
    port: int | None = None,
    token: str = "",
    description: str = "",
    **settings: object,
) -> Iterator[str]:
    """Serve a reward inside the context; the URL of the server."""
    port = port or free_port()
    serving = Serving(port=port, device="cpu", **settings)  # type: ignore[arg-type]
    app = application(reward, serving, description, token)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
