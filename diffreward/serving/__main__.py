"""Serve a function as a reward where little more than torch is installed.

``diffreward serve`` takes any reward and wants all that diffreward depends on. This wants torch,
safetensors, FastAPI and uvicorn: enough for a scorer whose own requirements allow no more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields

from diffreward.reward import Function
from diffreward.serving.server import Serving, serve


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the function that the arguments name; exits with 2 on a mistake of the user."""
    parser = argparse.ArgumentParser("python -m diffreward.serving", description=__doc__)
    parser.add_argument("function", help="file.py:name or package.module:name")
    for field in fields(Serving):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    settings = vars(parser.parse_args(arguments))
    try:
        reward = Function(settings.pop("function"))
        serve(reward, Serving(**settings), reward.path)
    except (FileNotFoundError, ImportError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
