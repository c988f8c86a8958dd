"""Sends one request and follows its stream; every outcome becomes a RequestRecord."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import Any

import aiohttp

from policies.sim.trace import TraceRow
from serve_app.bench.records import INTERRUPTED, RequestRecord, ResponseEnergy
from serve_app.bench.sse import Comment, Data, SseParser

_DONE = "[DONE]"
_ENERGY_COMMENT = "energy "
_MESSAGE_CHARS = 300
_CONTENT_KEYS = ("content", "reasoning_content", "reasoning", "tool_calls")


class RequestFailed(Exception):
    """A request that did not complete; `kind` as in RequestRecord.error."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(slots=True)
class StreamReading:
    """What has been seen of one stream. `content_times_s`: one entry per content chunk."""

    on_content: Callable[[], None] = lambda: None
    content_times_s: list[float] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    energy: ResponseEnergy | None = None
    finished: bool = False

    def take(self, event: Data | Comment, time_s: float) -> None:
        """Note an event that arrived at `time_s`. Raises RequestFailed for an error event."""
        if isinstance(event, Comment):
            if event.text.startswith(_ENERGY_COMMENT):
                self._take_energy(event.text.removeprefix(_ENERGY_COMMENT))
            return
        if event.text.strip() == _DONE:
            self.finished = True
            return
        try:
            content = json.loads(event.text)
        except ValueError as error:
            raise RequestFailed("malformed", f"not JSON: {event.text[:80]!r}") from error
        if not isinstance(content, dict):
            raise RequestFailed("malformed", f"not an object: {event.text[:80]!r}")
        if content.get("error"):
            raise RequestFailed("stream_error", _message_of(content))
        self._take_chunk(content, time_s)

    def _take_chunk(self, content: dict[str, Any], time_s: float) -> None:
        if isinstance(content.get("usage"), dict):
            self.usage = content["usage"]
        if "energy" in content:
            self.energy = ResponseEnergy.from_api(content["energy"])
        for choice in content.get("choices") or ():
            delta = choice.get("delta") or {}
            if choice.get("text") or any(delta.get(key) for key in _CONTENT_KEYS):
                self.content_times_s.append(time_s)
                self.on_content()
            if choice.get("finish_reason"):
                self.finished = True

    def _take_energy(self, text: str) -> None:
        try:
            self.energy = ResponseEnergy.from_api(json.loads(text))
        except ValueError:  # a comment is no part of the protocol: leave it
            return


@dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """Sends requests to one URL.

    `start_s` is the run's start on the clock of perf_counter; `on_content` is called at every
    content chunk.
    """

    session: aiohttp.ClientSession
    url: str
    start_s: float
    timeout_s: float
    on_content: Callable[[], None]

    async def send(self, index: int, row: TraceRow, body: bytes) -> RequestRecord:
        """Return what became of a request. Never raises; cancelling it makes it `interrupted`."""
        reading = StreamReading(self.on_content)
        kind: str | None = None
        message: str | None = None
        sent = perf_counter()
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._follow(body, reading)
        except RequestFailed as error:
            kind, message = error.kind, str(error)
        except TimeoutError:
            kind, message = "timeout", f"no end after {self.timeout_s:g} s"
        except aiohttp.ClientConnectorError as error:
            kind, message = "connect", str(error)
        except (aiohttp.ClientError, OSError) as error:
            kind, message = "disconnect", str(error) or type(error).__name__
        except asyncio.CancelledError:
            kind = INTERRUPTED
        return RequestRecord(
            index=index,
            scheduled_s=row.arrival_s,
            sent_s=sent - self.start_s,
            wanted_prompt_tokens=row.prompt_tokens,
            wanted_output_tokens=row.output_tokens,
            error=kind,
            error_message=message and message[:_MESSAGE_CHARS],
            energy=reading.energy,
            **_measures(reading, sent, perf_counter()),
        )

    async def _follow(self, body: bytes, reading: StreamReading) -> None:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        async with self.session.post(self.url, data=body, headers=headers) as response:
            if response.status != 200:
                text = await response.text(errors="replace")
                raise RequestFailed(f"http_{response.status}", _message_in(text))
            parser = SseParser()
            async for chunk in response.content.iter_any():
                time_s = perf_counter()
                for event in parser.feed(chunk):
                    reading.take(event, time_s)
            if not reading.finished:
                raise RequestFailed("disconnect", "the stream ended before its end mark")


def _measures(reading: StreamReading, sent: float, end: float) -> dict[str, Any]:
    times = reading.content_times_s
    usage = reading.usage or {}
    output_tokens = usage.get("completion_tokens")
    if not isinstance(output_tokens, int):
        output_tokens = len(times)
    ttft_s = times[0] - sent if times else None
    tpot_s = None
    if ttft_s is not None and output_tokens > 1:
        tpot_s = (end - sent - ttft_s) / (output_tokens - 1)
    return {
        "e2e_s": end - sent,
        "ttft_s": ttft_s,
        "tpot_s": tpot_s,
        "itl_s": tuple(after - before for before, after in pairwise(times)),
        "prompt_tokens": usage.get("prompt_tokens"),
        "output_tokens": output_tokens,
        "usage_missing": reading.usage is None,
    }


def _message_in(text: str) -> str:
    try:
        return _message_of(json.loads(text))
    except ValueError:
        return text.strip()


def _message_of(content: Any) -> str:
    error = content.get("error", content) if isinstance(content, dict) else content
    if isinstance(error, dict):
        error = error.get("message", error)
    return str(error)
