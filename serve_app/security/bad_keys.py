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
from typing import Any, Self, cast
from urllib.parse import urlsplit

import httptools
import numpy as np
import uvloop

from serve_app.security.keys import new_key

_PATH = "/v1/chat/completions"
_BODY = b'{"model": "none", "messages": [{"role": "user", "content": "let me in"}]}'
_TIMEOUT_S = 10.0
_CONNECTIONS = 64
_BUNCH_S = 0.01
_BEHIND_S = 1.0  # later than this a request is left out: the sender or the server cannot keep up


@dataclass(frozen=True, kw_only=True, slots=True)
class FloodCounts:
    """What became of a flood. `seconds`: how long it lasted; `sent`: requests answered or failed;
    `left_out`: planned, but more than a second late, or all connections were waiting; `outcomes`:
    by HTTP status or error; `answer_p50_s`, `answer_p99_s`: time to the answer, None without one;
    `sender_cpu_s`: what sending took of this host."""

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
    uvloop.run(_Sender(url, rate_per_s, source).run(pipe))


class _Sender:
    """Open loop: each request at its planned time, whatever became of those before. Sends every
    10 ms what is due, over connections that are kept: sender, clients and service of one host share
    its cores, and a general client takes several times as much of them."""

    def __init__(self, url: str, rate_per_s: float, source: str | None) -> None:
        self.url = urlsplit(url)
        self._host = self.url.hostname or "127.0.0.1"
        self._port = self.url.port or (443 if self.url.scheme == "https" else 80)
        self.outcomes: Counter[str] = Counter()
        self.answers_s: list[float] = []
        self.free: list[_Connection] = []
        self.open = 0
        self._rate_per_s = rate_per_s
        self._source = (source, 0) if source is not None else None
        self._left_out = 0

    async def run(self, pipe: Connection) -> None:
        pipe.send(None)
        begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
        number = 0
        while not pipe.poll():
            now_s = time.perf_counter()
            while (due_s := begin_s + number / self._rate_per_s) <= now_s:
                number += 1
                await self._send_unless_behind(now_s - due_s)
            await asyncio.sleep(_BUNCH_S)
        pipe.recv()
        for _ in range(round(_TIMEOUT_S / _BUNCH_S)):
            if len(self.free) == self.open:
                break
            await asyncio.sleep(_BUNCH_S)
        if self.open > len(self.free):
            self.outcomes["TimeoutError"] += self.open - len(self.free)
        pipe.send(self._counts(time.perf_counter() - begin_s, begin_cpu_s))

    async def _send_unless_behind(self, late_s: float) -> None:
        if late_s > _BEHIND_S or not (self.free or self.open < _CONNECTIONS):
            self._left_out += 1
            return
        if self.free:
            self.free.pop().send()
            return
        loop = asyncio.get_running_loop()
        self.open += 1
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self),
                self._host,
                self._port,
                ssl=self.url.scheme == "https",
                local_addr=self._source,
            )
        except OSError as error:
            self.open -= 1
            self.outcomes[type(error).__name__] += 1
        else:
            connection.send()

    def _counts(self, seconds: float, begin_cpu_s: float) -> FloodCounts:
        answers: Any = self.answers_s or None
        return FloodCounts(
            seconds=seconds,
            sent=self.outcomes.total(),
            left_out=self._left_out,
            outcomes=dict(self.outcomes),
            answer_p50_s=float(np.quantile(answers, 0.5)) if answers else None,
            answer_p99_s=float(np.quantile(answers, 0.99)) if answers else None,
            sender_cpu_s=time.process_time() - begin_cpu_s,
        )


class _Connection(asyncio.Protocol):
    """One request at a time; back among the free ones once its answer is whole."""

    def __init__(self, sender: _Sender) -> None:
        self._sender = sender
        self._transport: asyncio.Transport | None = None
        self._sent_s: float | None = None
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self) -> None:
        assert self._transport is not None
        url = self._sender.url
        head = (
            f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\n"
            f"Authorization: Bearer {new_key()}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(_BODY)}\r\n\r\n"
        )
        self._sent_s = time.perf_counter()
        self._transport.write(head.encode() + _BODY)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._failed(error)

    def on_message_complete(self) -> None:
        assert self._transport is not None
        if self._sent_s is None:
            return
        self._sender.answers_s.append(time.perf_counter() - self._sent_s)
        self._sender.outcomes[str(self._parser.get_status_code())] += 1
        self._sent_s = None
        if not self._parser.should_keep_alive():
            self._transport.close()
            return
        self._parser = httptools.HttpResponseParser(self)
        self._sender.free.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._sent_s is not None:
            self._sender.outcomes[type(exc or ConnectionResetError()).__name__] += 1
            self._sent_s = None
        if self in self._sender.free:
            self._sender.free.remove(self)
        self._sender.open -= 1

    def _failed(self, error: Exception) -> None:
        assert self._transport is not None
        self._sender.outcomes[type(error).__name__] += 1
        self._sent_s = None
        self._transport.close()
