"""Brings a running engine to a point and takes samples there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from policies.core.errors import EngineDead
from serve_app.meters import DeviceKind
from serve_app.profiler.host import busy_cpu_s, cores
from serve_app.profiler.samples import (
    Kind,
    Origin,
    Phase,
    Sample,
    Window,
    idle_sample,
    summarize,
)

if TYPE_CHECKING:
    from serve_app.meters import EnergyMeter, Reading
    from serve_app.meters.process_tree import ProcessTree
    from serve_app.profiler.engine import Engine
    from serve_app.profiler.steps import Step
    from serve_app.profiler.sweep import Point, Run

SETTLE_STEPS = 2  # the first steps of a new composition touch cold caches
MIN_STEPS = 8  # so many, unless that takes more than STRETCH windows
STRETCH = 3.0
IDLE_WINDOW_S = 4.0
MIN_FILL_S = 0.5  # shorter fills say little about energy: CPU time is counted in ticks of 10 ms
MIN_COVERAGE_RATIO = 0.95
CROWDED_RATIO = 0.85  # of all cores busy: the engine waited for a core
FOREIGN_RATIO = 0.1  # of all cores busy with something else: then it was not the engine's own doing
YARDSTICK_TOKENS = 32  # of prompt
YARDSTICK_STEPS = 6
CALM_TIMEOUT_S = 3.0  # a slow spell that lasts longer is measured in, and marked
CALM_PERIOD_S = 0.5
_STAGGER_S = 0.005  # so that two prompts do not fall into one step
_PROMPTS_IN_FLIGHT = 2  # one in the step, one waiting: the engine never waits for us


@dataclass(frozen=True, kw_only=True, slots=True)
class _Begin:
    """What all counters showed when a window began."""

    reading: Reading
    cpu_s: float
    frontend_s: float
    busy_s: float


def is_crowded(cpu_s: float, foreign_s: float, core_s: float) -> bool:
    """Whether other processes took CPU time that the engine may have needed. `core_s`: the core
    seconds that there were."""
    return foreign_s > FOREIGN_RATIO * core_s and cpu_s + foreign_s > CROWDED_RATIO * core_s


class Prober:
    """Takes samples. `window_s`: how long a steady window lasts at least, seconds;
    `power_limit_watts`: what a limit sweep has in force, written into the samples."""

    window_s = 1.0
    power_limit_watts: float | None = None
    _yardstick_s: float | None = None  # the last one

    def __init__(self, engine: Engine, meter: EnergyMeter, tree: ProcessTree, device: str) -> None:
        self.engine = self._engine = engine
        self._meter = meter
        self._tree = tree
        self._device = device

    def warm_up(self) -> float:
        """Runs prefill and decode unmeasured; returns prompt tokens per second afterwards."""
        engine = self._engine
        tokens = min(512, engine.settings.max_model_len // 2)
        for prompt_tokens, output_tokens in ((16, 8), (tokens, 4), (tokens, 1)):
            engine.quiesce()
            engine.forget()
            engine.add(prompt_tokens, output_tokens)
            while engine.unfinished:
                engine.step()
        engine.quiesce()
        return tokens / sum(step.time_s for step in engine.steps)

    def measure(self, run: Run) -> tuple[list[Sample], list[Step]]:
        """The samples of one run, and its steps. The fill of a long decode point, which computes
        many prompts, is a sample of its own."""
        engine, point = self._engine, run.point
        before_s = 0.0 if point.kind is Kind.IDLE else self._yardstick_s or self.yardstick()
        engine.quiesce()
        engine.forget()
        if point.kind is Kind.IDLE:
            time.sleep(0.5)  # the engine's own spin-down after the last step
            return [idle_sample(self._origin(run, Phase.STEADY, None), self._idle())], []
        engine.prepare(point.num_seqs, point.context_tokens, point.prompt_tokens)
        fill = self._fill(point) if point.num_seqs else None
        steady = self._steady(point)
        engine.quiesce()  # the step that straddles the end of the window is recorded now
        steps = list(engine.steps)
        slower_s = max(before_s, self.yardstick())
        samples = [summarize(self._origin(run, Phase.STEADY, slower_s), steps, steady)]
        if fill is not None and fill.duration_s >= MIN_FILL_S:
            samples.append(summarize(self._origin(run, Phase.FILL, slower_s), steps, fill))
        return [sample for sample in samples if sample is not None], steps

    def yardstick(self) -> float:
        """A decode step of one sequence, seconds: how quick the machine is just now."""
        engine = self._engine
        engine.quiesce()
        engine.forget()
        engine.prepare(1, YARDSTICK_TOKENS, 0)
        engine.add(YARDSTICK_TOKENS, SETTLE_STEPS + 2 * YARDSTICK_STEPS)
        times: list[float] = []
        while engine.unfinished and len(times) < SETTLE_STEPS + YARDSTICK_STEPS:
            engine.step()
            times = [step.time_s for step in engine.steps if not step.prefill_tokens]
        engine.quiesce()
        self._yardstick_s = median(times[SETTLE_STEPS:] or times)
        return self._yardstick_s

    def wait_for_calm(self, slow_s: float) -> None:
        """Return when the yardstick is within `slow_s`, or after CALM_TIMEOUT_S."""
        end_s = time.monotonic() + CALM_TIMEOUT_S
        while (self._yardstick_s or self.yardstick()) > slow_s and time.monotonic() < end_s:
            time.sleep(CALM_PERIOD_S)
            self.yardstick()

    def _idle(self) -> Window:
        begin = self._open()
        time.sleep(IDLE_WINDOW_S)
        return self._close(begin)

    def _fill(self, point: Point) -> Window:
        """Start the decoding batch; returns when all of it decodes."""
        engine = self._engine
        begin = self._open()
        for _ in range(point.num_seqs):
            engine.add(point.context_tokens, engine.settings.max_model_len - point.context_tokens)
        while not self._decodes(point):
            if not engine.unfinished:
                raise EngineDead(f"{point.name}: the requests ended before all of them decoded")
            engine.step()
        return self._close(begin)

    def _decodes(self, point: Point) -> bool:
        steps = self._engine.steps
        return bool(steps) and steps[-1].num_seqs == point.num_seqs and not steps[-1].prefill_tokens

    def _steady(self, point: Point) -> Window:
        """A window of at least `window_s` and MIN_STEPS steps, the first steps left out."""
        in_flight = self._feed(point, 0)
        for _ in range(SETTLE_STEPS):
            in_flight = self._advance(point, in_flight)
        begin = self._open()
        first = len(self._engine.steps)
        while self._engine.unfinished:
            elapsed_s = time.monotonic() - begin.reading.time_s
            steps = len(self._engine.steps) - first
            if elapsed_s >= self.window_s and (
                steps >= MIN_STEPS or elapsed_s >= STRETCH * self.window_s
            ):
                break
            in_flight = self._advance(point, in_flight)
        return self._close(begin)

    def _advance(self, point: Point, in_flight: int) -> int:
        """Wait for one step, then refill the prompts in flight; returns how many those are."""
        return self._feed(point, in_flight - self._engine.step())

    def _feed(self, point: Point, in_flight: int) -> int:
        """Add prompts so that each step computes one.

        Beside a decoding batch one is added per step: two that wait together would share a step
        and leave the next one without. Without a batch the engine runs dry unless one waits, so
        both are added, far enough apart that the first has begun.
        """
        room = _PROMPTS_IN_FLIGHT - in_flight if point.prompt_tokens else 0
        apart = self._engine.in_background and not point.num_seqs
        for _ in range(min(room, 1) if point.num_seqs else room):
            self._engine.add(point.prompt_tokens, 1)
            time.sleep(_STAGGER_S if apart else 0.0)
            in_flight += 1
        return in_flight

    def _open(self) -> _Begin:
        return _Begin(
            reading=self._meter.read(),
            cpu_s=self._tree.cpu_seconds(),
            frontend_s=time.process_time(),
            busy_s=busy_cpu_s(),
        )

    def _close(self, begin: _Begin) -> Window:
        used = self._meter.measure_since(begin.reading)
        cpu_s = self._tree.cpu_seconds() - begin.cpu_s
        foreign_s = max(0.0, busy_cpu_s() - begin.busy_s - cpu_s)
        reasons = [f"{name}: {why}" for name, why in used.unavailable.items()]
        covered = used.joules is not None and used.coverage_ratio >= MIN_COVERAGE_RATIO
        return Window(
            start_s=begin.reading.time_s,
            end_s=begin.reading.time_s + used.duration_s,
            joules=used.joules if covered else None,
            gpu_joules=used.joules_by_kind.get(DeviceKind.GPU) if covered else None,
            source=str(used.source),
            coverage_ratio=used.coverage_ratio,
            reason="; ".join(reasons),
            cpu_s=cpu_s,
            frontend_cpu_s=time.process_time() - begin.frontend_s,
            foreign_cpu_s=foreign_s,
            crowded=is_crowded(cpu_s, foreign_s, used.duration_s * cores()),
        )

    def _origin(self, run: Run, phase: Phase, yardstick_s: float | None) -> Origin:
        return Origin(
            point=run.point.name,
            kind=run.point.kind,
            phase=phase,
            repeat=run.repeat,
            device=self._device,
            power_limit_watts=self.power_limit_watts,
            yardstick_s=yardstick_s,
        )
