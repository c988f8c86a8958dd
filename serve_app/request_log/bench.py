"""`python -m serve_app.request_log.bench`: what the request log costs at a given rate.

Takes requests through what a replica does for them (follow, tenant, engine's word, row) into a real
log in a temporary folder, and prints the CPU seconds that the process used beyond the same loop
without requests, as a share of one core. Writing, rotation and compression are in it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from serve_app.engine.tap import FinishedRequest
from serve_app.request_log.call import Call
from serve_app.request_log.files import Bounds, LogFile
from serve_app.request_log.open_requests import SETTLE_S, Identity, OpenRequests
from serve_app.request_log.row import Row
from serve_app.request_log.tenant import TenantRule
from serve_app.request_log.writer import RequestLog

_TURN_S = 0.01  # rows come in small bursts, as an engine's steps finish them
_IDENTITY = Identity(
    application="llm", deployment="EnergyLLMServer:bench", replica="bench", model="bench"
)
_ENERGY = {
    "joules": 12.345678,
    "idle_joules": 1.234567,
    "prefill_joules": 2.345678,
    "decode_joules": 10.0,
    "devices": {"gpu": 11.111111, "cpu": 1.234567},
    "source": "counter",
    "method": "model_weighted",
    "attribution_ratio": 0.123456,
    "coverage_ratio": 1.0,
}


class Feed:
    """Takes requests through everything that a replica does for their rows; without `write`,
    through what it does without a log."""

    def __init__(self, write: Callable[[Row], None] | None) -> None:
        self._open = OpenRequests(_IDENTITY, lambda _: _ENERGY, write) if write else None
        self._rule = TenantRule("as_given")

    def request(self, number: int) -> None:
        """One request, from its arrival to the engine's last word."""
        name = f"chatcmpl-{number:032x}"
        headers = {"authorization": f"Bearer sk-{number % 50}"}
        finished = FinishedRequest(
            request_id=name,
            outcome="stop",
            ttft_s=0.123456,
            tpot_s=0.0123456,
            e2e_s=2.5,
            queue_s=0.001234,
            prompt_tokens=512,
            output_tokens=200,
            cached_tokens=128,
        )
        if self._open is None:
            return
        call = Call(self._rule.tenant(None, headers), name)
        with self._open.follow(call):
            self._open.told(name, _ENERGY)
            call.event("data: [DONE]")
        # The engine's word comes last, which costs a little more than the other way round.
        self._open.finished(finished)


async def run(rate: float, duration_s: float, request: Callable[[int], None]) -> tuple[float, int]:
    """(CPU seconds, requests) of a paced loop."""
    begin_s, cpu_s, rows = time.perf_counter(), time.process_time(), 0
    while (elapsed_s := time.perf_counter() - begin_s) < duration_s:
        while rows < rate * elapsed_s:
            rows += 1
            request(rows)
        await asyncio.sleep(_TURN_S)
    await asyncio.sleep(2 * SETTLE_S)  # the last rows are made
    return time.process_time() - cpu_s, rows


def main() -> int:
    """Exit status: 0 within `--limit`, 1 above it or rows were lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=2000.0, help="rows per second")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds")
    parser.add_argument("--limit", type=float, default=0.05, help="share of a core")
    parser.add_argument("--out", type=Path, help="folder for result.json")
    options = parser.parse_args()
    gc.collect()
    gc.freeze()  # as Ray does once a replica has started
    pacing_duration_s = min(10.0, options.duration)
    pacing_s, _ = asyncio.run(run(options.rate, pacing_duration_s, Feed(None).request))
    pacing_share = pacing_s / pacing_duration_s
    with tempfile.TemporaryDirectory() as folder:
        bounds = Bounds(max_bytes=2**30, max_file_bytes=2**24, max_age_s=1e9)
        log = RequestLog(LogFile(Path(folder), "bench", bounds))
        cpu_s, rows = asyncio.run(run(options.rate, options.duration, Feed(log.write).request))
        before_s = time.process_time()
        log.close(timeout_s=10.0)
        cpu_s += time.process_time() - before_s
        files = [path.stat().st_size for path in Path(folder).iterdir()]
        written, dropped = log.counts.written, log.counts.dropped
    share = cpu_s / options.duration - pacing_share
    result = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows_per_s": rows / options.duration,
        "rows": rows,
        "rows_written": written,
        "rows_dropped": dropped,
        "core_share_ratio": round(share, 4),
        "microseconds_per_row": round(share * options.duration / rows * 1e6, 2),
        "pacing_core_share_ratio": round(pacing_share, 4),
        "files": len(files),
        "bytes_on_disk": sum(files),
    }
    print(json.dumps(result))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if share <= options.limit and written == rows else 1


if __name__ == "__main__":
    raise SystemExit(main())
