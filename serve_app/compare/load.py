"""A closed loop: a fixed number of requests, a fixed number of them under way at any time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter, process_time

import aiohttp

from policies.sim.trace import TraceRow
from serve_app.bench.client import Client
from serve_app.bench.options import Endpoint
from serve_app.bench.prompts import PromptSource, request_body
from serve_app.bench.records import INTERRUPTED, RequestRecord

_TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """The load of one cell. `first_index` picks the prompts: the same for every system, and never
    the same twice for one, so that no prefix cache answers."""

    model: str
    concurrency: int
    requests: int
    prompt_tokens: int
    output_tokens: int
    first_index: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CellResult:
    """What came of it. `wall_s`: first sending to last byte; `client_cpu_s`: what sending cost."""

    records: tuple[RequestRecord, ...]
    wall_s: float
    client_cpu_s: float


def run_cell(url: str, cell: Cell, prompts: PromptSource) -> CellResult:
    """Send a cell's requests to the server at `url`; every outcome becomes a record."""
    bodies = [
        request_body(
            cell.model,
            Endpoint.CHAT,
            prompts.text(cell.first_index + number, cell.prompt_tokens),
            cell.output_tokens,
        )
        for number in range(cell.requests)
    ]
    return asyncio.run(_run(url, cell, bodies))


async def _run(url: str, cell: Cell, bodies: list[bytes]) -> CellResult:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
    ) as session:
        start_s, cpu_s = perf_counter(), process_time()
        client = Client(
            session=session,
            url=url.rstrip("/") + Endpoint.CHAT.path,
            start_s=start_s,
            timeout_s=_TIMEOUT_S,
            on_content=lambda: None,
        )
        records: list[RequestRecord] = []
        waiting = iter(enumerate(bodies))
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(cell.concurrency, len(bodies))):
                workers.create_task(_work(client, cell, waiting, records))
        wall_s = max(record.sent_s + (record.e2e_s or 0.0) for record in records)
        return CellResult(
            records=tuple(sorted(records, key=lambda record: record.index)),
            wall_s=wall_s,
            client_cpu_s=process_time() - cpu_s,
        )


async def _work(
    client: Client,
    cell: Cell,
    waiting: Iterator[tuple[int, bytes]],
    records: list[RequestRecord],
) -> None:
    """Send the next request when the last one has ended, until there is none."""
    for index, body in waiting:
        row = TraceRow(
            arrival_s=perf_counter() - client.start_s,
            prompt_tokens=cell.prompt_tokens,
            output_tokens=cell.output_tokens,
        )
        record = await client.send(index, row, body)
        records.append(record)
        if record.error == INTERRUPTED:
            raise asyncio.CancelledError  # which `send` has turned into the record
