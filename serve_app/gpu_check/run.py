"""One check from beginning to end: open, time the calls, sample through the phases, analyse."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

from policies.core.errors import ConfigError, EngineError
from serve_app.gpu_check.analysis import Distribution
from serve_app.gpu_check.gpus import Gpu, ReadOnlyNvml, driver_facts, open_gpus
from serve_app.gpu_check.load import Load, choose_load
from serve_app.gpu_check.plan import STARTING, Phase, idle_phase, loaded_phases
from serve_app.gpu_check.result import CheckResult, analyse, timed
from serve_app.gpu_check.sampling import Clock, Sampler, Series, SystemClock
from serve_app.meters import NvmlBackend, NvmlSettings

_CHECK_EVERY_S = 0.5
_SETTLING_S = 3.0  # after the load's own start, before its rest is measured


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckOptions:
    """What to check. `duration_s`: of all phases together. `warm_up_s`: how long a load command
    needs until it computes. Raises ConfigError for figures out of range."""

    duration_s: float
    gpus: tuple[str, ...] | None = None
    load_command: str | None = None
    warm_up_s: float = 10.0
    sample_period_s: float = 0.005

    def __post_init__(self) -> None:
        if not 1.0 <= self.duration_s <= 3600.0:
            raise ConfigError(f"--duration {self.duration_s:g}; allowed: 1 to 3600 seconds")
        if not 0.0 <= self.warm_up_s <= 600.0:
            raise ConfigError(f"--load-warm-up {self.warm_up_s:g}; allowed: 0 to 600 seconds")


class Progress(Protocol):
    """Who is told how far it is."""

    def begin(self, total_s: float) -> None: ...

    def phase(self, text: str) -> None: ...

    def advance(self, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class CheckRun:
    """A finished check: its figures, its samples by GPU, and what the driver says of itself."""

    result: CheckResult
    series: dict[str, Series]
    gpus: tuple[Gpu, ...]
    driver: dict[str, Any]


def run_check(
    options: CheckOptions,
    progress: Progress,
    *,
    load: Load | None = None,
    clock: Clock | None = None,
) -> CheckRun:
    """Check the GPUs. `load`: instead of the one that the options lead to.

    Raises MeterError where there is no GPU to check, ConfigError.
    """
    nvml = ReadOnlyNvml()
    try:
        gpus, left_out = open_gpus(nvml, options.gpus)
        costs = {gpu.uuid: _call_costs(nvml, gpu) for gpu in gpus}
        cycle_s = _cycle_cost(options.gpus)
        load, notes = (load, ()) if load is not None else _choose(options, gpus)
        problems = [f"{uuid[:12]}: not checked: {reason}" for uuid, reason in left_out.items()]
        sampler = Sampler(nvml, gpus, options.sample_period_s, clock or SystemClock())
        begin_s, begin_cpu_s = time.monotonic(), time.process_time()
        try:
            _phases(options.duration_s, load, sampler, progress)
        except EngineError as error:
            problems.append(str(error))
        cpu_ratio = (time.process_time() - begin_cpu_s) / (time.monotonic() - begin_s)
        series, faults = sampler.series(), sampler.faults
        result = CheckResult(
            gpus=tuple(analyse(g, series[g.uuid], costs[g.uuid], faults.get(g.uuid)) for g in gpus),
            cycle_s=cycle_s,
            load=None if load is None else load.description,
            sampling={"period_s": options.sample_period_s, "cpu_ratio": cpu_ratio},
            notes=notes,
            problems=tuple(problems),
        )
        return CheckRun(result, series, tuple(gpus), driver_facts(nvml))
    finally:
        nvml.close()


def _choose(options: CheckOptions, gpus: list[Gpu]) -> tuple[Load | None, tuple[str, ...]]:
    """The load that the options lead to; None with a note where there is none."""
    uuids = [gpu.uuid for gpu in gpus]
    chosen = choose_load(options.load_command, uuids, options.warm_up_s)
    if isinstance(chosen, str):
        return None, (f"no load ({chosen}): idle only; --load COMMAND gives one",)
    return chosen, ()


def _call_costs(nvml: ReadOnlyNvml, gpu: Gpu) -> dict[str, Distribution | None]:
    """Seconds per call of one GPU's sensors."""
    energy, power = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"
    return {
        "counter": timed(lambda: nvml.read(energy, gpu.handle)) if gpu.has_counter else None,
        "power": timed(lambda: nvml.read(power, gpu.handle)),
        "instant": timed(lambda: nvml.instant_milliwatts(gpu.handle)) if gpu.has_instant else None,
    }


def _cycle_cost(wanted: tuple[str, ...] | None) -> Distribution | None:
    """Seconds that the meter itself takes for one reading of all GPUs."""
    backend = NvmlBackend(NvmlSettings(gpus=wanted))
    try:
        return timed(lambda: backend.read(time.monotonic()))
    finally:
        backend.close()


def _phases(total_s: float, load: Load | None, sampler: Sampler, progress: Progress) -> None:
    """Go through the phases; the load is closed in any case."""
    first = idle_phase(total_s, with_load=load is not None)
    progress.begin(total_s if load is not None else first.seconds)
    _run(first, None, sampler, progress)
    if load is None:
        return
    try:
        progress.phase("the load starts")
        load.start()
        rest = Phase(name=STARTING, seconds=min(_SETTLING_S, 0.05 * total_s))
        for phase in (rest, *loaded_phases(total_s)):
            _run(phase, load, sampler, progress)
    finally:
        load.close()


def _run(phase: Phase, load: Load | None, sampler: Sampler, progress: Progress) -> None:
    """One phase: the load runs and rests in turn until the time is over."""
    progress.phase(phase.name)
    clock = sampler.clock
    end_s = clock.now_s() + phase.seconds
    running = False
    while (left_s := end_s - clock.now_s()) > 0.0:
        turn_s = left_s
        if load is not None and phase.on_s > 0.0:
            running = not running or phase.off_s == 0.0
            (load.on if running else load.off)()
            turn_s = min(left_s, phase.on_s if running else phase.off_s)
        _turn(phase.name, turn_s, load, sampler, progress)
    if load is not None and running:
        load.off()


def _turn(
    name: str, seconds: float, load: Load | None, sampler: Sampler, progress: Progress
) -> None:
    """Sample for a while; notice soon when the load has ended."""
    end_s = sampler.clock.now_s() + seconds
    while (left_s := end_s - sampler.clock.now_s()) > 0.0:
        part_s = min(left_s, _CHECK_EVERY_S)
        sampler.sample(name, part_s)
        progress.advance(part_s)
        if load is not None:
            load.check()
