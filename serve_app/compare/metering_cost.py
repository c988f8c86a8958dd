"""What metering costs one engine: the same engine and load, the meter on and off in turn.

    python -m serve_app.compare.metering_cost [--seconds 300] [--out docs/results/metering-cost]

One vLLM engine serves a constant number of requests. Slices of a few seconds with the meter on (the
scheduler's step tap, the books, the sensors, the metrics, a window each second) and off (none of
them) follow each other as on, off, off, on, ..., so that a drift of the machine counts for both.
Each pair of neighbours gives a ratio; reported is their median with a bootstrap interval.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serve_app.accounting import EnergyAccountant, weigher_for
from serve_app.deciders import load_profile
from serve_app.engine.access import set_step_tap
from serve_app.engine.step_link import SOCKET_ENV
from serve_app.meters import open_meter
from serve_app.models.resolve import resolve_model
from serve_app.observers.metrics import BASE_LABELS, MetricSet
from serve_app.observers.recorder import Recorder
from serve_app.profiler.engine_run import EngineSettings

_TICK_S = 1.0
_SETTLE_S = 0.5  # after a switch: steps under way belong to neither side


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """What one slice served. `itl_s`: median gap between two tokens of one request, seconds."""

    metered: bool
    seconds: float
    tokens: int
    itl_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


@dataclass(slots=True)
class _Count:
    tokens: int = 0
    gaps_s: list[float] = field(default_factory=list)


class Bench:
    """One engine under constant load, with a meter that can be switched."""

    def __init__(self, model: str, profile: str, concurrency: int) -> None:
        self._concurrency = concurrency
        self.accountant = EnergyAccountant(open_meter(), weigher_for(load_profile(profile)))
        settings = EngineSettings(model_path=resolve_model(model), max_num_seqs=concurrency)
        os.environ.update(settings.environment())
        os.environ[SOCKET_ENV] = self.accountant.receiver.path
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**settings.engine_args()))
        self._engine_client = self.llm  # as Ray's engine holds it: engine/access reaches it there
        labels = dict.fromkeys(BASE_LABELS, "bench")
        self._recorder = Recorder(MetricSet(labels))
        self._metered = True
        self._count = _Count()
        self._asked = 0

    async def run(self, seconds: float, slice_s: float) -> list[Slice]:
        """Return the slices of `seconds`, on and off in turn."""
        load = [asyncio.create_task(self._ask_forever()) for _ in range(self._concurrency)]
        ticks = asyncio.create_task(self._tick_forever())
        try:
            await asyncio.sleep(5.0)  # warm
            gc.collect()
            gc.freeze()  # as Ray does once a replica has started
            return [
                await self._slice(metered, slice_s)
                for metered in _turns(max(1, round(seconds / (slice_s + _SETTLE_S) / 4)))
            ]
        finally:
            for task in (*load, ticks):
                task.cancel()
            await asyncio.gather(*load, ticks, return_exceptions=True)
            self.llm.shutdown()
            self.accountant.close()

    async def _slice(self, metered: bool, slice_s: float) -> Slice:
        await set_step_tap(self, on=metered)
        self._metered = metered
        await asyncio.sleep(_SETTLE_S)
        self._count, started_s = _Count(), time.monotonic()
        await asyncio.sleep(slice_s)
        seconds, count = time.monotonic() - started_s, self._count
        print(
            "on " if metered else "off", f"{count.tokens / seconds:.1f} tokens/s", file=sys.stderr
        )
        return Slice(
            metered=metered,
            seconds=seconds,
            tokens=count.tokens,
            itl_s=statistics.median(count.gaps_s),
        )

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            if self._metered:
                self.accountant.close_window()
                self._recorder.books(self.accountant)

    async def _ask_forever(self) -> None:
        from vllm import SamplingParams

        sampling = SamplingParams(max_tokens=64, ignore_eos=True, detokenize=False)
        while True:
            self._asked += 1
            name, last_s = f"chatcmpl-{self._asked}", None
            prompt = {"prompt_token_ids": [(self._asked * 7 + i) % 400 + 10 for i in range(64)]}
            async for _ in self.llm.generate(prompt, sampling, name):
                now_s = time.monotonic()
                self._count.tokens += 1
                if last_s is not None:
                    self._count.gaps_s.append(now_s - last_s)
                    if self._metered:
                        self._recorder.itl((now_s - last_s,))
                last_s = now_s
            if self._metered:
                self.accountant.energy_object(name)


def _turns(blocks: int) -> Iterator[bool]:
    for _ in range(blocks):
        yield from (True, False, False, True)


def ratios(slices: list[Slice], figure: str) -> dict[str, float]:
    """Return median and 95 % bootstrap interval of on/off over pairs of neighbours."""
    import numpy as np
    from scipy.stats import bootstrap

    pairs = zip(slices[::2], slices[1::2], strict=False)
    found = []
    for one, other in pairs:
        on, off = (one, other) if one.metered else (other, one)
        found.append(getattr(on, figure) / getattr(off, figure))
    low = high = found[0]
    if len(found) > 1:
        interval = bootstrap((np.array(found),), np.median, rng=0).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return {"median": statistics.median(found), "low": low, "high": high, "pairs": len(found)}


def document(slices: list[Slice], options: argparse.Namespace) -> dict[str, Any]:
    """Return everything that was measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": options.model,
        "concurrency": options.concurrency,
        "slice_s": options.slice,
        "throughput_on_over_off": ratios(slices, "tokens_per_s"),
        "median_itl_on_over_off": ratios(slices, "itl_s"),
        "slices": [asdict(one) for one in slices],
    }


def main() -> None:
    """Measure, print, and write `--out`/result.json and report.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--profile", default="smollm2-135m-instruct@cpu")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--slice", type=float, default=4.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    bench = Bench(options.model, options.profile, options.concurrency)
    found = document(asyncio.run(bench.run(options.seconds, options.slice)), options)
    load = f"{options.concurrency} requests under way, slices of {options.slice:g} s in turn"
    lines = [
        "# Metering on against off (measured)",
        "",
        f"One vLLM engine, {options.model}, {load}.",
        "",
        "| figure | on / off, median | 95 % interval | pairs |",
        "|---|---|---|---|",
    ]
    for name, key in (
        ("throughput", "throughput_on_over_off"),
        ("median time between tokens", "median_itl_on_over_off"),
    ):
        r = found[key]
        lines.append(
            f"| {name} | {r['median']:.4f} | {r['low']:.4f} to {r['high']:.4f} | {r['pairs']} |"
        )
    print("\n".join(lines))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "result.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.out / "report.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
