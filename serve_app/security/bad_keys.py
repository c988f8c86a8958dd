"""Sends requests with wrong API keys at a steady rate, from a process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Self

import aiohttp
import numpy as np

from serve_app.security.keys import new_key

_PATH = "/v1/chat/completions"
_BODY = b'{"model": "none", "messages": [{"role": "user", "content": "let me in"}]}'
_TIMEOUT_S = 10.0
_CONNECTIONS = 64
_BEHIND_S = 1.0  # later than this a request is left out: the sender or the server cannot keep up


@dataclass(frozen=True, kw_only=True, slots=True)
class FloodCounts:
    """What became of a flood. `seconds`: how long it lasted; `sent`: requests answered or failed;
    `left_out`: planned, but more than a second late; `outcomes`: by HTTP status or error;
    `answer_p50_s`, `answer_p99_s`: time to the answer, None without one; `sender_cpu_s`: what
    sending took of this host."""

    seconds: float
    sent: int
    left_out: int
    outcomes: dict[str, int] = field(default_factory=dict)
    answer_p50_s: float | None
    answer_p99_s: float | None
    sender_cpu_s: float

    @property
    def rate_per_s(self) -> float:
        """Requests per second that were really sent."""
        return self.sent / self.seconds


class Flood:
    """A flood while the `with` block lasts; `counts` is known after it. `source`: the address that
    it comes from."""

    def __init__(self, url: str, rate_per_s: float, source: str | None = None) -> None:
        self._given = (url.rstrip("/") + _PATH, rate_per_s, source)
        self.counts: FloodCounts | None = None
        self._process: BaseProcess | None = None

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_child, args=(theirs, *self._given), daemon=True)
        self._process.start()
        theirs.close()  # a child that dies is an EOFError here, and no wait for ever
        self._pipe.recv()  # it sends from now on: imports are done
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._pipe.send(None)
        self.counts = self._pipe.recv()
        self._process.join()


def _child(pipe: Connection, url: str, rate_per_s: float, source: str | None) -> None:
    # A sender elsewhere would take no core of the service's: here, only what nobody else wants.
    os.nice(19)
    asyncio.run(_Sender(url, rate_per_s, source).run(pipe))


class _Sender:
    """Open loop: each request at its planned time, whatever became of those before."""

    def __init__(self, url: str, rate_per_s: float, source: str | None) -> None:
        self._url = url
        self._rate_per_s = rate_per_s
        self._source = (source, 0) if source is not None else None
        self._outcomes: Counter[str] = Counter()
        self._answers_s: list[float] = []

    async def run(self, pipe: Connection) -> None:
        connector = aiohttp.TCPConnector(limit=_CONNECTIONS, local_addr=self._source)
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        left_out, number = 0, 0
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            pipe.send(None)
            begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
            under_way: set[asyncio.Task[None]] = set()
            while not pipe.poll():
                due_s = begin_s + number / self._rate_per_s
                number += 1
                wait_s = due_s - time.perf_counter()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                elif wait_s < -_BEHIND_S or len(under_way) >= 4 * _CONNECTIONS:
                    left_out += 1
                    await asyncio.sleep(0)
                    continue
                task = asyncio.create_task(self._send(session))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            await asyncio.gather(*under_way)
        pipe.recv()
        pipe.send(self._counts(time.perf_counter() - begin_s, begin_cpu_s, left_out))

    async def _send(self, session: aiohttp.ClientSession) -> None:
        headers = {"Authorization": f"Bearer {new_key()}", "Content-Type": "application/json"}
        begin_s = time.perf_counter()
        try:
            async with session.post(self._url, data=_BODY, headers=headers) as answer:
                await answer.read()
                self._outcomes[str(answer.status)] += 1
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            self._outcomes[type(error).__name__] += 1
        else:
            self._answers_s.append(time.perf_counter() - begin_s)

    def _counts(self, seconds: float, begin_cpu_s: float, left_out: int) -> FloodCounts:
        answers: Any = self._answers_s or None
        return FloodCounts(
            seconds=seconds,
            sent=self._outcomes.total(),
            left_out=left_out,
            outcomes=dict(self._outcomes),
            answer_p50_s=float(np.quantile(answers, 0.5)) if answers else None,
            answer_p99_s=float(np.quantile(answers, 0.99)) if answers else None,
            sender_cpu_s=time.process_time() - begin_cpu_s,
        )
