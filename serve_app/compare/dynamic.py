"""The dynamic run: the same bursts against stock and ours, each alone on the machine, in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.bench.options import BenchOptions, parse_burst
from serve_app.bench.preflight import Progress
from serve_app.bench.result import BenchResult
from serve_app.bench.runner import run_bench_async
from serve_app.compare.configs import AppPlan, Base
from serve_app.compare.loopback import settle
from serve_app.compare.options import CompareOptions, Part
from serve_app.compare.probe import ProbeReading, ReplicaProbe
from serve_app.compare.processes import CpuWatch
from serve_app.compare.systems import Cluster, Say
from serve_app.meters import EstimateSettings
from serve_app.settings import parse_energy

MAX_REPLICAS = 2
_REST_S = 5.0
_WARM_UP_REQUESTS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One run of the dynamic part: its name in the tables, and the application it loads."""

    name: str
    app: AppPlan


def contenders(options: CompareOptions) -> list[Contender]:
    """Return stock with Ray's default autoscaling, with each target asked for, and ours."""
    found = [Contender(name="stock", app=_stock(None))]
    found += [
        Contender(name=f"stock, target {target:g}", app=_stock(target))
        for target in options.stock_targets
    ]
    ours = AppPlan(name="ours", ours=True, max_replicas=MAX_REPLICAS, profile=options.profile)
    return [*found, Contender(name="ours", app=ours)]


def _stock(target: float | None) -> AppPlan:
    return AppPlan(
        name="stock", ours=False, max_replicas=MAX_REPLICAS, target_ongoing_requests=target
    )


def run_dynamic(
    base: Base, options: CompareOptions, folder: Path, say: Say
) -> Iterator[dict[str, Any]]:
    """Yield one row per contender."""
    for number, contender in enumerate(contenders(options)):
        say(f"dynamic: starting {contender.name} alone")
        with Cluster(base, [contender.app], folder / f"{number}") as cluster:
            cluster.wait_ready(say)
            yield _run_one(base, options, contender, cluster, say)


def _run_one(
    base: Base, options: CompareOptions, contender: Contender, cluster: Cluster, say: Say
) -> dict[str, Any]:
    url = cluster.url(contender.app.name)
    _bench(_warm_up(options, url, base.model))
    settle(_REST_S)
    say(f"dynamic: {contender.name}: {options.burst} for {options.duration_s:g} s")
    watch = CpuWatch([cluster.child])
    probe = ReplicaProbe(cluster.child, contender.app.name, estimate_of(base))
    probe.start()
    try:
        result = _bench(_bursts(options, url, base.model))
    finally:
        reading = probe.stop()
    return dynamic_row(contender, result, reading, watch.spent())


def _bench(options: BenchOptions) -> BenchResult:
    result = asyncio.run(run_bench_async(options, Progress()))
    if result.facts.interrupted:  # the generator takes Ctrl-C for itself; here it ends everything
        raise KeyboardInterrupt
    return result


def _bursts(options: CompareOptions, url: str, model: str) -> BenchOptions:
    return BenchOptions(
        url=url,
        model=model,
        burst=parse_burst(options.burst),
        duration_s=options.duration_s,
        prompt_tokens=options.dynamic_prompt_tokens,
        output_tokens=options.dynamic_output_tokens,
        slo=options.slo,
        seed=options.seed,
    )


def _warm_up(options: CompareOptions, url: str, model: str) -> BenchOptions:
    return BenchOptions(
        url=url,
        model=model,
        rate_per_s=1.0,
        duration_s=_WARM_UP_REQUESTS * 4.0,
        max_requests=_WARM_UP_REQUESTS,
        output_tokens="16",
        seed=options.seed + 1,
    )


def estimate_of(base: Base) -> EstimateSettings:
    """Return the watts of the file's own estimated meter: one method for stock and ours."""
    settings = parse_energy(base.energy, str(base.path)).meter.estimated
    return EstimateSettings(
        watts_per_busy_core=settings.watts_per_busy_core, idle_watts=settings.idle_watts
    )


def dynamic_row(
    contender: Contender, result: BenchResult, reading: ProbeReading, cpu_s: dict[str, float]
) -> dict[str, Any]:
    """Return one row: what the client saw, the probe's joules, and what the server says itself."""
    document = result.to_dict()
    fleet = document["fleet"] or {}
    completed = document["requests"]["completed"]

    def per_request(joules: float | None) -> float | None:
        return joules / completed if joules is not None and completed else None

    return {
        "part": Part.DYNAMIC.value,
        "system": contender.name,
        "load": document["run"]["load"],
        "started_at": document["run"]["started_at"],
        "wall_s": document["run"]["wall_s"],
        "requests": document["requests"],
        "latency": document["latency"],
        "tokens": document["tokens"],
        "slo": document["slo"],
        "replica_seconds": reading.replica_seconds,
        "replicas": {"min": reading.min_replicas, "max": reading.max_replicas},
        "replica_samples": [list(sample) for sample in reading.samples],
        "joules": reading.joules,
        "joules_per_request": per_request(reading.joules),
        "own_meter_joules": fleet.get("run_meter_joules"),
        "own_joules_per_request": fleet.get("joules_per_request"),
        "own_balance_error_ratio": fleet.get("balance_error_ratio"),
        "max_num_active_seqs": fleet.get("max_num_active_seqs"),
        "cpu_s": cpu_s,
    }
