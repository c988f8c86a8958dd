"""Interleaved rounds: every system gets the same cells, in an order that rotates; one row each."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from serve_app.bench.prompts import PromptSource
from serve_app.compare.load import Cell, CellResult, run_cell
from serve_app.compare.loopback import settle
from serve_app.compare.options import CompareOptions
from serve_app.compare.processes import CpuWatch
from serve_app.compare.systems import Rig, Say, System

_PAUSE_S = 1.0
_MIN_WAVES, _MAX_WAVES = 2, 40
_PROMPTS_PER_ROUND = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One cell of one system. Times in seconds as the client saw them; TTFT and TPOT as in
    RequestRecord. `cpu_s`: CPU seconds by process part, of all systems that were up."""

    part: str
    round: int
    position: int
    system: str
    concurrency: int
    requests: int
    completed: int
    errors: dict[str, int] = field(default_factory=dict)
    output_tokens: int
    wall_s: float
    tokens_per_s: float
    ttft_p50_s: float | None
    ttft_max_s: float | None
    tpot_p50_s: float | None
    cpu_s: dict[str, float]
    client_cpu_s: float
    idle_app_cpu_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The cells of one part. `waves`: concurrency → waves per cell; `done`: → rounds that an
    earlier session has measured, after which this one goes on counting."""

    part: str
    model: str
    options: CompareOptions
    waves: dict[int, int]
    prompts: PromptSource
    done: dict[int, int] = field(default_factory=dict)

    def cell(self, concurrency: int, number: int) -> Cell:
        """Return the load of round `number` (0 = warm-up, one wave) at a concurrency."""
        waves = self.waves.get(concurrency, 1) if number else 1
        return Cell(
            model=self.model,
            concurrency=concurrency,
            requests=waves * concurrency,
            prompt_tokens=self.options.prompt_tokens,
            output_tokens=self.options.output_tokens,
            first_index=number * _PROMPTS_PER_ROUND + concurrency * 1000,
        )


def rotated(systems: Sequence[System], by: int) -> list[System]:
    """Return the systems starting `by` places later: each comes first as often as the others."""
    start = by % len(systems)
    return [*systems[start:], *systems[:start]]


def warm_up(rig: Rig, plan: Plan, say: Say) -> dict[int, int]:
    """Run one uncounted wave per concurrency everywhere; return the waves a cell needs.

    The slowest system decides, so that no cell is shorter than two waves or than about `cell_s`.
    """
    slowest: dict[int, float] = {}
    for system in {system.url: system for system in rig.systems}.values():
        system.prepare()
        for concurrency in plan.options.concurrency:
            found = run_cell(system.url, plan.cell(concurrency, 0), plan.prompts)
            slowest[concurrency] = max(slowest.get(concurrency, 0.0), found.wall_s)
        say(f"{plan.part}: {system.name} is warm")
    return {
        c: max(_MIN_WAVES, min(_MAX_WAVES, round(plan.options.cell_s / wall_s)))
        for c, wall_s in slowest.items()
    }


def measure_rounds(rig: Rig, plan: Plan, say: Say) -> Iterator[Row]:
    """Yield a row per cell: rounds, in them concurrencies, in them all systems."""
    turn = sum(plan.done.values())
    for step in range(1, plan.options.rounds + 1):
        for concurrency in plan.options.concurrency:
            number = plan.done.get(concurrency, 0) + step
            for position, system in enumerate(rotated(rig.systems, turn)):
                system.prepare()
                settle(_PAUSE_S)
                watch = CpuWatch(rig.children)
                result = run_cell(system.url, plan.cell(concurrency, number), plan.prompts)
                row = row_of(plan, system, (number, position, concurrency), result, watch.spent())
                say(
                    f"{plan.part} round {number} c={concurrency} {system.name}: "
                    f"{row.tokens_per_s:.0f} tokens/s"
                )
                yield row
            turn += 1


def row_of(
    plan: Plan,
    system: System,
    place: tuple[int, int, int],
    result: CellResult,
    cpu_s: dict[str, float],
) -> Row:
    """Return the row of one cell; `place` is (round, position in it, concurrency)."""
    done = [record for record in result.records if record.completed]
    errors: dict[str, int] = {}
    for record in result.records:
        if record.error is not None:
            errors[record.error] = errors.get(record.error, 0) + 1
    tokens = sum(record.output_tokens or 0 for record in done)
    ttft_s = [record.ttft_s for record in done if record.ttft_s is not None]
    number, position, concurrency = place
    return Row(
        part=plan.part,
        round=number,
        position=position,
        system=system.name,
        concurrency=concurrency,
        requests=len(result.records),
        completed=len(done),
        errors=errors,
        output_tokens=tokens,
        wall_s=result.wall_s,
        tokens_per_s=tokens / result.wall_s if result.wall_s > 0 else 0.0,
        ttft_p50_s=median_or_none(ttft_s),
        ttft_max_s=max(ttft_s, default=None),
        tpot_p50_s=median_or_none(r.tpot_s for r in done if r.tpot_s is not None),
        cpu_s=cpu_s,
        client_cpu_s=result.client_cpu_s,
        idle_app_cpu_s=idle_cpu_s(cpu_s, system.app),
    )


def idle_cpu_s(cpu_s: dict[str, float], app: str) -> float:
    """Return what the systems that were up but not loaded used; Ray's shared parts belong to none,
    since they serve the loaded one."""
    return sum(
        used_s for part, used_s in cpu_s.items() if part.partition("/")[0] not in (app, "ray")
    )


def median_or_none(values: Iterable[float]) -> float | None:
    """Return the median, None where there is nothing."""
    known = list(values)
    return statistics.median(known) if known else None


def idle_check(rig: Rig, seconds: float, pause: Callable[[float], None] = settle) -> dict[str, Any]:
    """Return CPU seconds by part while nothing is asked, and of how long.

    The work after the last request (a live update, a window of the control loop) is let go by.
    """
    pause(seconds)
    watch = CpuWatch(rig.children)
    pause(seconds)
    return {"wall_s": seconds, "cpu_s": watch.spent()}
