"""Makes `bench_server` importable: importlib mode leaves test folders out of sys.path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bench_server import Server, running


@pytest.fixture
def serve():
    """`serve(answer, ...)`: a running Server; all of them end with the test."""
    stack = []

    def start(answer, **settings):
        context = running(Server(answer, **settings))
        server = context.__enter__()
        stack.append(context)
        return server

    yield start
    for context in reversed(stack):
        context.__exit__(None, None, None)
