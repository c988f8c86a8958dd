"""Rows to log. Also run as a program: writes rows until it is killed, and says which it gave."""

import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from serve_app.request_log.files import Bounds, LogFile
from serve_app.request_log.row import Row
from serve_app.request_log.writer import RequestLog

START = datetime(2026, 11, 21, 14, 0, tzinfo=UTC)
ROOMY = Bounds(max_bytes=2**30, max_file_bytes=2**24, max_age_s=30 * 86_400.0)


def row(number=0, **changes):
    """A completed request of 2 s and 12 J; `changes` replace its fields."""
    start = changes.pop("start", START)
    fields = {
        "response_id": f"chatcmpl-{number}",
        "engine_request_ids": (f"chatcmpl-{number}",),
        "num_sequences": 1,
        "start": start,
        "first_token": start + timedelta(seconds=0.5),
        "end": start + timedelta(seconds=2),
        "prompt_tokens": 100,
        "output_tokens": 20,
        "cached_tokens": 0,
        "ttft_s": 0.5,
        "tpot_s": 0.05,
        "queue_s": 0.01,
        "joules": 12.0,
        "idle_joules": 1.0,
        "prefill_joules": 4.0,
        "decode_joules": 8.0,
        "device_joules": {"gpu": 10.0, "cpu": 2.0},
        "source": "counter",
        "unavailable": None,
        "method": "model_weighted",
        "attribution_ratio": 0.5,
        "coverage_ratio": 1.0,
        "model": "m",
        "application": "llm",
        "deployment": "d",
        "replica": "r",
        "tenant": None,
        "tenant_kind": None,
        "outcome": "completed",
        "finish_reason": "stop",
    }
    return Row(**{**fields, **changes})


NO_ENERGY = {
    "joules": None,
    "idle_joules": None,
    "prefill_joules": None,
    "decode_joules": None,
    "device_joules": {},
    "source": "unavailable",
    "unavailable": "nvml: no driver",
    "method": None,
    "attribution_ratio": None,
    "coverage_ratio": None,
}


def write_for_ever(folder, rows_per_s):
    log = RequestLog(LogFile(Path(folder), "victim", ROOMY))
    begin_s, number = time.monotonic(), 0
    while True:
        while number < rows_per_s * (time.monotonic() - begin_s):
            log.write(row(number))
            print(f"{time.monotonic()} {number}", flush=True)
            number += 1
        time.sleep(0.002)


if __name__ == "__main__":
    write_for_ever(sys.argv[1], float(sys.argv[2]))
