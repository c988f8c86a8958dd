"""Runs a bench: an open loop that sends each request at its time, whatever the server does."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from time import perf_counter

import aiohttp

from policies.sim.trace import TraceRow
from serve_app.bench.client import Client
from serve_app.bench.fleet import PATH, FleetWatch
from serve_app.bench.host import interrupt_sets, raise_open_file_limit
from serve_app.bench.options import BenchOptions
from serve_app.bench.preflight import Progress, served_model
from serve_app.bench.prompts import PromptSource, prompt_source, request_body
from serve_app.bench.records import INTERRUPTED, RequestRecord
from serve_app.bench.result import BenchResult, RunFacts
from serve_app.bench.schedule import build_schedule, describe_load

_BODIES_AHEAD = 2000
_SPARE_S = 0.005  # the least pause in which the next body is built
_KEEP_ALIVE_S = 2.0  # shorter than servers': a reused connection is one that is still open


def run_bench(options: BenchOptions, progress: Progress | None = None) -> BenchResult:
    """Return the result of a run. `progress` is updated while it runs.

    Ctrl-C stops the sending and waits `drain_s` for what is under way; a second one does not wait.
    Raises ConfigError for options that cannot be, EnergyServeError when no server answers.
    """
    return asyncio.run(run_bench_async(options, progress))


async def run_bench_async(options: BenchOptions, progress: Progress | None = None) -> BenchResult:
    """Return the result of a run; for a caller that has an event loop."""
    rows = build_schedule(options)
    progress = progress if progress is not None else Progress()
    progress.scheduled = len(rows)
    raise_open_file_limit()
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None),
        headers=headers,
    ) as session:
        model = await served_model(session, options, progress)
        source = prompt_source(model, options.tokenizer, options.seed)
        progress.notes.append(source.note)
        bodies = _Bodies(rows, options, model, source)
        return await _Run(options, rows, progress, session, model).measure(bodies)


class _Bodies:
    """Request bodies in order, built ahead of their time so that building delays no sending."""

    def __init__(
        self, rows: tuple[TraceRow, ...], options: BenchOptions, model: str, source: PromptSource
    ) -> None:
        self._rest = (
            request_body(
                model, options.endpoint, source.text(index, row.prompt_tokens), row.output_tokens
            )
            for index, row in enumerate(rows)
        )
        self._ready: deque[bytes] = deque()
        while self.build_one():
            pass

    def build_one(self) -> bool:
        """Build one more; whether there was one to build, and room for it."""
        if len(self._ready) >= _BODIES_AHEAD or (body := next(self._rest, None)) is None:
            return False
        self._ready.append(body)
        return True

    def take(self) -> bytes:
        """Return the next one."""
        return self._ready.popleft() if self._ready else next(self._rest)


class _Run:
    """One run, from the first sample to the last response."""

    def __init__(
        self,
        options: BenchOptions,
        rows: tuple[TraceRow, ...],
        progress: Progress,
        session: aiohttp.ClientSession,
        model: str,
    ) -> None:
        self._options = options
        self._rows = rows
        self._progress = progress
        self._session = session
        self._model = model
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def measure(self, bodies: _Bodies) -> BenchResult:
        """Send everything, watch the fleet, wait for the end."""
        options = self._options
        start_s = perf_counter()
        fleet = FleetWatch(self._session, options.base_url + PATH, start_s)
        offered = await fleet.first()
        start_s = fleet.start_s = perf_counter()
        started_at = datetime.now(tz=UTC).isoformat(timespec="seconds")
        with interrupt_sets(self._stop, self._hurry):
            watch = asyncio.create_task(fleet.watch()) if offered else None
            records = await self._send_all(bodies, start_s)
            ends = (record.sent_s + (record.e2e_s or 0.0) for record in records)
            wall_s = max(ends, default=perf_counter() - start_s)
            settled = False
            if watch is not None:
                watch.cancel()
                settled = not self._hurry.is_set() and await fleet.settle()
        return BenchResult(
            facts=RunFacts(
                url=options.base_url,
                model=self._model,
                endpoint=options.endpoint.value,
                load=describe_load(options),
                seed=options.seed,
                started_at=started_at,
                wall_s=wall_s,
                interrupted=self._stop.is_set(),
                scheduled=len(self._rows),
                notes=tuple(self._progress.notes),
            ),
            slo=options.slo,
            records=tuple(sorted(records, key=lambda record: record.index)),
            fleet_samples=tuple(fleet.samples),
            fleet_settled=settled,
        )

    async def _send_all(self, bodies: _Bodies, start_s: float) -> list[RequestRecord]:
        client = Client(
            session=self._session,
            url=self._options.base_url + self._options.endpoint.path,
            start_s=start_s,
            timeout_s=self._options.timeout_s,
            on_content=self._count_content,
        )
        tasks: list[asyncio.Task[RequestRecord]] = []
        for index, row in enumerate(self._rows):
            await self._wait_until(start_s + row.arrival_s, bodies)
            if self._stop.is_set():
                break
            self._progress.sent += 1
            task = asyncio.create_task(client.send(index, row, bodies.take()))
            task.add_done_callback(self._count_end)
            tasks.append(task)
        await self._wait_for(tasks)
        return [task.result() for task in tasks]

    async def _wait_until(self, time_s: float, bodies: _Bodies) -> None:
        """Return at `time_s`, or when the run is stopped; builds bodies in the meantime."""
        # Not polling: each turn builds a body and lets the streams be read.
        while time_s - perf_counter() > _SPARE_S and bodies.build_one():  # noqa: ASYNC110
            await asyncio.sleep(0)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), max(0.0, time_s - perf_counter()))

    async def _wait_for(self, tasks: list[asyncio.Task[RequestRecord]]) -> None:
        everything = asyncio.gather(*tasks)
        stopped = asyncio.create_task(self._stop.wait())
        hurried = asyncio.create_task(self._hurry.wait())
        await asyncio.wait((everything, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not everything.done():
            await asyncio.wait(
                (everything, hurried),
                timeout=self._options.drain_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in tasks:
                task.cancel()
        stopped.cancel()
        hurried.cancel()
        await everything

    def _count_content(self) -> None:
        self._progress.content_chunks += 1

    def _count_end(self, task: asyncio.Task[RequestRecord]) -> None:
        error = task.result().error
        if error is None:
            self._progress.completed += 1
        elif error != INTERRUPTED:
            self._progress.failed += 1
