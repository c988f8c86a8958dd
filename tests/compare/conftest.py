"""Makes the bench's test server importable; planted rows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

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


@pytest.fixture
def row():
    """`row(system, ...)`: one cell's row."""

    def make(
        system, *, number=1, rate=100.0, ttft=0.1, tpot=0.01, concurrency=8, part="overhead", **more
    ):
        base = {
            "part": part,
            "round": number,
            "position": 0,
            "system": system,
            "concurrency": concurrency,
            "requests": 16,
            "completed": 16,
            "errors": {},
            "output_tokens": 1000,
            "wall_s": 10.0,
            "tokens_per_s": rate,
            "ttft_p50_s": ttft,
            "ttft_max_s": ttft,
            "tpot_p50_s": tpot,
            "cpu_s": {},
            "client_cpu_s": 0.1,
            "idle_app_cpu_s": 0.0,
        }
        return {**base, **more}

    return make
