"""Measures the loads on the real deployment, one after the other, each between two yardsticks."""

from __future__ import annotations

import csv
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import psutil

from policies.core.errors import EngineError
from serve_app.bench.options import BenchOptions
from serve_app.bench.preflight import Progress
from serve_app.bench.result import BenchResult
from serve_app.bench.runner import run_bench
from serve_app.compare.loopback import settle
from serve_app.fidelity.loads import Load
from serve_app.fidelity.observed import Conditions, Observed, observed
from serve_app.fidelity.pulse import Pulse, windows_s
from serve_app.fidelity.service import EngineSizes, Event, Fleet, ask
from serve_app.fidelity.simulated import Life
from serve_app.meters.process_tree import ProcessTree
from serve_app.profiler.host import busy_cpu_s
from serve_app.request_log.reader import ReadCounts, read_rows
from serve_app.request_log.row import Row

Say = Callable[[str], None]
REST_S = 3.0
IDLE_S = 10.0
_SEED = 20_000
_YARDSTICKS, _YARDSTICK_TOKENS = 3, 40
_START_TIMEOUT_S, _STOP_TIMEOUT_S, _ROWS_TIMEOUT_S = 300.0, 90.0, 20.0


@dataclass(slots=True)
class Rig:
    """The deployment and where its traces and logs go."""

    fleet: Fleet
    folder: Path
    say: Say
    _numbers: dict[str, int] = field(default_factory=dict)

    @property
    def sizes(self) -> EngineSizes:
        """As the engine says."""
        return self.fleet.sizes

    def idle_watts(self) -> float:
        """What one idle replica draws by its meter."""
        settle(REST_S)
        begin_s, begin = time.monotonic(), self._joules()
        settle(IDLE_S)
        return (self._joules() - begin) / (time.monotonic() - begin_s)

    def yardstick_s(self) -> float:
        """Seconds per token of one request alone, as the client sees it: the median of three."""
        settle(REST_S)
        found = []
        for _ in range(_YARDSTICKS):
            begin_s = time.perf_counter()
            ask(self.fleet.url, self.fleet.model, _YARDSTICK_TOKENS)
            found.append((time.perf_counter() - begin_s) / _YARDSTICK_TOKENS)
        return statistics.median(found)

    def measure(self, load: Load) -> Observed:
        """One run of a load, with what went on beside it."""
        number = self._numbers[load.name] = self._numbers.get(load.name, 0) + 1
        before_s = self.yardstick_s()
        run, conditions = self._loaded(load, number)
        after_s = self.yardstick_s()
        self.say(
            f"{load.name} {number}: {run.completed} of {run.arrived} completed; yardstick "
            f"{1e3 * before_s:.1f} and {1e3 * after_s:.1f} ms, other processes "
            f"{conditions.foreign_cores:.2f} cores, client {conditions.client_cores:.2f}"
        )
        return replace(
            run,
            conditions=replace(conditions, yardstick_before_s=before_s, yardstick_after_s=after_s),
        )

    def _loaded(self, load: Load, number: int) -> tuple[Observed, Conditions]:
        options = BenchOptions(
            url=self.fleet.url,
            model=self.fleet.model,
            trace=_written(load, self.folder / f"{load.name}.csv"),
            # Prompts of their own in every run: one that was seen before is in the prefix cache.
            seed=_SEED + sum(self._numbers.values()),
        )
        scaling = _Scaling(self.fleet, load)
        # Asked now and then: a replica that comes and goes within the run counts too.
        theirs, me = ProcessTree(self.fleet.child.pid), psutil.Process()
        began_utc_s, began_s, busy_s, mine_s = time.time(), time.monotonic(), busy_cpu_s(), _cpu(me)
        with Pulse(also=theirs.cpu_seconds) as pulse, scaling:
            result = run_bench(options, Progress())
            wall_s = time.monotonic() - began_s
            busy_s, mine_s = busy_cpu_s() - busy_s, _cpu(me) - mine_s
        theirs_s = theirs.cpu_seconds()
        if result.facts.interrupted:  # the client takes Ctrl-C for itself; here it ends everything
            raise KeyboardInterrupt
        rows = self._rows(result, began_utc_s)
        run = observed(load.name, number, result, rows, scaling.lives())
        return run, Conditions(
            read_s=tuple(windows_s([read_s for _, read_s, _ in pulse.samples])),
            compute_s=tuple(windows_s([compute_s for _, _, compute_s in pulse.samples])),
            foreign_cores=max(0.0, busy_s - mine_s - theirs_s) / wall_s,
            client_cores=mine_s / wall_s,
        )

    def _rows(self, result: BenchResult, began_utc_s: float) -> list[Row]:
        """The rows of the run, once all are written. EngineError where some never come."""
        wanted = sum(record.completed for record in result.records)
        end_s = time.monotonic() + _ROWS_TIMEOUT_S
        found: list[Row] = []
        while time.monotonic() < end_s:
            rows = read_rows(self.fleet.requests, ReadCounts())
            found = [r for r in rows if r.output_tokens and r.start.timestamp() >= began_utc_s]
            if len(found) >= wanted:
                return found
            time.sleep(0.5)
        raise EngineError(f"{wanted} requests completed, {len(found)} are in the request log")

    def _joules(self) -> float:
        return float(self.fleet.meter()["meter_joules"] or 0.0)


class _Scaling:
    """Changes the replicas at their times, in a thread, and notes when they came and went."""

    def __init__(self, fleet: Fleet, load: Load) -> None:
        self._fleet, self._load = fleet, load
        self._before = set(_running(fleet))
        self._started_s: list[tuple[float, float]] = []  # asked for, running
        self._fault: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scaling", daemon=True)
        self._begin_s = 0.0

    def __enter__(self) -> Self:
        self._begin_s = time.time()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._ended.set()
        self._thread.join(_START_TIMEOUT_S)
        if kind is None and self._fault is not None:
            raise self._fault

    def lives(self) -> list[Life]:
        """Every replica of the run, UNIX times; those that were there before it first."""
        events = [event for event in self._fleet.events if event.time_s >= self._begin_s]
        return lives_of(sorted(self._before), self._started_s, events)

    def _run(self) -> None:
        try:
            for before, (at_s, count) in zip(
                self._load.replicas, self._load.replicas[1:], strict=False
            ):
                if self._ended.wait(max(0.0, self._begin_s + at_s - time.time())):
                    return
                asked_s = time.time()
                self._fleet.set_replicas(count)
                if count > before[1]:
                    ready_s = self._fleet.wait_started(count, _START_TIMEOUT_S)
                    self._started_s.append((asked_s, ready_s))
                else:
                    self._fleet.wait_stopped(_STOP_TIMEOUT_S)
        except Exception as error:  # told by the thread that waits for this one
            self._fault = error


def lives_of(
    before: list[str], started_s: list[tuple[float, float]], events: list[Event]
) -> list[Life]:
    """Every replica of a run, UNIX times: those that were there `before`, then those whose engine
    came up meanwhile, in that order; `started_s`: when each was asked for, when it ran."""
    new = [e.replica for e in events if e.kind == "engine_up" and e.replica]
    stopping = [event.time_s for event in events if event.kind == "stopping"]
    stopped = [event.replica for event in events if event.kind == "stopped"]
    ends = dict(zip(stopped, stopping, strict=True))
    return [Life(replica=name, stopping_s=ends.get(name)) for name in before] + [
        Life(replica=name, asked_s=asked_s, ready_s=ready_s, stopping_s=ends.get(name))
        for name, (asked_s, ready_s) in zip(new, started_s, strict=True)
    ]


def _running(fleet: Fleet) -> list[str]:
    """The replicas whose engine came up and that did not stop since, in that order."""
    events = fleet.events
    stopped = {event.replica for event in events if event.kind == "stopped"}
    up = [event.replica for event in events if event.kind == "engine_up" and event.replica]
    return [name for name in up if name not in stopped]


def _written(load: Load, path: Path) -> Path:
    """The load's requests as a trace that the bench reads."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
        writer.writerows((row.arrival_s, row.prompt_tokens, row.output_tokens) for row in load.rows)
    return path


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
