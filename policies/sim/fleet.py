"""A fleet under a policy: cold starts, drains, reports and the same ticks as live.

Every `tick_s` each accepting replica reports and decides about its own cap and limit; the fleet
decides about replicas on the reports, which may be late. A wanted replica that is not there starts
cold and draws `cold_start_watts` meanwhile; one that is no longer wanted takes no more requests and
is gone when its last one has ended. No request is lost.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from policies.core.control import Policy
from policies.core.errors import ConfigError
from policies.core.types import (
    ControlState,
    Knob,
    Observation,
    OperatingPoint,
    ReplicaObservation,
)
from policies.model.fitted import FittedModel
from policies.sim import kernel
from policies.sim.arrivals import TraceRow
from policies.sim.coefficients import coefficients
from policies.sim.fleet_state import (
    DONE,
    DONE_FULL,
    NEEDS_ARRIVALS,
    REACHED,
    Arrivals,
    new_fleet,
)
from policies.sim.outcome import Moment, SimResult, SimSettings
from policies.sim.recent import Ended, Recent, joined

BLOCK = 65_536  # arrivals handed to the kernel at a time
_FLEET = frozenset({Knob.NUM_REPLICAS})
_REPLICA = frozenset({Knob.MAX_NUM_ACTIVE_SEQS, Knob.POWER_LIMIT})


def simulate(
    trace: Iterable[TraceRow], truth: FittedModel, policy: Policy, settings: SimSettings
) -> SimResult:
    """Play the trace, in the order of arrival. Deterministic by `settings.seed`. ConfigError where
    the fleet falls ever further behind."""
    run = _Run(trace, truth, policy, settings)
    while not run.over:
        run.tick()
    return run.close()


class _Run:
    def __init__(
        self, trace: Iterable[TraceRow], truth: FittedModel, policy: Policy, settings: SimSettings
    ) -> None:
        bounds = settings.control.bounds
        self._settings, self._policy = settings, policy
        self._limits: list[float | None] = [None, *bounds.power_limits_watts]
        size = max(bounds.max_replicas, settings.initial_replicas, 1)
        watts = settings.cold_start_watts
        self._start_watts = truth.power.idle_watts if watts is None else watts
        self._fleet = new_fleet(
            coefficients(truth, self._limits),
            replicas=size,
            max_num_seqs=bounds.max_num_seqs,
            budget_tokens=settings.max_num_batched_tokens,
            kv_capacity_tokens=settings.kv_capacity_tokens,
            slots=settings.max_outstanding,
            done=4 * max(BLOCK, bounds.max_num_seqs),
            router=settings.router,
            pack_seqs=settings.pack_seqs,
            jitter=settings.jitter,
            seed=settings.seed,
        )
        self._rows = iter(trace)
        self._block, self._next, self._last = _take(self._rows), 0, False
        self._now_s, self._ticks = 0.0, 0
        self._target = settings.initial_replicas
        self._starting: deque[tuple[float, int]] = deque()
        self._since_s = np.zeros(size)
        self._shown = np.zeros(size)
        self._drawn = 0.0
        self._ended: list[Ended] = []
        self._recent = Recent(settings.horizon_s, size)
        self._reports: deque[tuple[float, tuple[ReplicaObservation, ...]]] = deque()
        self._fleet_state = ControlState()
        self._states = [ControlState() for _ in range(size)]
        self._arrivals_end_s: float | None = None
        self.result = SimResult(policy=policy.name)
        for replica in range(settings.initial_replicas):
            kernel.accept(self._fleet, replica, 0.0)

    @property
    def over(self) -> bool:
        """Whether all has arrived and ended, or the time to drain is over."""
        if self._arrivals_end_s is None:
            return False
        late = self._now_s - self._arrivals_end_s > self._settings.drain_s
        return late or self.result.arrived == self.result.completed

    def tick(self) -> None:
        """Go on by one tick, then report and decide."""
        end_s = self._now_s + self._settings.tick_s
        for ready_s, _ in self._starting:
            spent_s = min(ready_s, end_s) - self._now_s
            self.result.start_joules += self._start_watts * spent_s
        while self._starting and self._starting[0][0] <= end_s:
            ready_s, replica = self._starting.popleft()
            self._advance(ready_s)
            kernel.accept(self._fleet, replica, ready_s)
            self._since_s[replica] = ready_s
        self._advance(end_s)
        self._ticks += 1
        ended = joined(self._ended)
        self._ended = []
        self._score(ended)
        self._recent.add(end_s, ended, self._fleet.arrived)
        self._release_drained()
        self._decide()
        self._note()

    def _advance(self, until_s: float) -> None:
        fleet = self._fleet
        while True:
            code, self._next = kernel.advance(fleet, until_s, self._block, self._next, self._last)
            if code == NEEDS_ARRIVALS:
                self.result.arrived += len(self._block.times_s)
                block = _take(self._rows)
                if len(block.times_s):
                    self._block, self._next = block, 0
                else:
                    self._last = True
                    times = self._block.times_s
                    self._arrivals_end_s = float(times[-1]) if len(times) else 0.0
                continue
            self._collect()
            if code == DONE_FULL:
                continue
            if code != REACHED:
                raise ConfigError(
                    f"max_outstanding is {self._settings.max_outstanding}, and more requests are "
                    f"under way before {until_s:g} s: the fleet cannot serve this trace"
                )
            self._now_s = until_s
            return

    def _collect(self) -> None:
        fleet = self._fleet
        count = int(fleet.numbers[DONE])
        if not count:
            return
        tokens = fleet.done_output_tokens[:count].copy()
        first_s, end_s = fleet.done_first_s[:count], fleet.done_end_s[:count].copy()
        with np.errstate(invalid="ignore", divide="ignore"):
            tpot_s = np.where(tokens > 1, (end_s - first_s) / (tokens - 1), np.nan)
        self._ended.append(
            Ended(
                end_s=end_s,
                replica=fleet.done_replica[:count].copy(),
                prompt_tokens=fleet.done_prompt_tokens[:count].copy(),
                output_tokens=tokens,
                ttft_s=first_s - fleet.done_arrival_s[:count],
                tpot_s=tpot_s,
            )
        )
        fleet.numbers[DONE] = 0

    def _score(self, ended: Ended) -> None:
        result, slo = self.result, self._settings.control.slo
        result.completed += len(ended.end_s)
        result.output_tokens += int(ended.output_tokens.sum())
        quick = ended.ttft_s <= slo.ttft_s
        smooth = np.isnan(ended.tpot_s) | (ended.tpot_s <= slo.tpot_s)
        result.attained += int((quick & smooth).sum())
        result.ttft.add(ended.ttft_s)
        result.tpot.add(ended.tpot_s)

    def _release_drained(self) -> None:
        fleet = self._fleet
        idle = (fleet.on == 1) & (fleet.accepting == 0) & (fleet.outstanding == 0)
        for replica in np.flatnonzero(idle):
            kernel.release(fleet, int(replica), self._now_s)

    def _decide(self) -> None:
        settings = self._settings
        reports = self._observe()
        if self._ticks % settings.replica_every == 0:
            for one in reports:
                self._decide_replica(one)
        self._reports.append((self._now_s, reports))
        while len(self._reports) > 1 and (
            self._reports[1][0] <= self._now_s - settings.report_delay_s
        ):
            self._reports.popleft()
        if self._ticks % settings.fleet_every == 0:
            self._decide_fleet()

    def _observe(self) -> tuple[ReplicaObservation, ...]:
        fleet, control = self._fleet, self._settings.control
        seen = self._recent.statistics(self._now_s, self._since_s, control.slo.percentile)
        return tuple(
            ReplicaObservation(
                replica=str(replica),
                time_s=self._now_s,
                num_running=float(fleet.outstanding[replica] - fleet.waiting[replica]),
                num_waiting=float(fleet.waiting[replica]),
                arrival_rate_per_s=float(seen.arrival_rate_per_s[replica]),
                prompt_tokens=_known(seen.prompt_tokens[replica]),
                output_tokens=_known(seen.output_tokens[replica]),
                ttft_s=_known(seen.ttft_s[replica]),
                tpot_s=_known(seen.tpot_s[replica]),
                max_num_active_seqs=int(fleet.cap[replica]),
                power_limit_watts=self._limits[fleet.row[replica]],
            )
            for replica in np.flatnonzero(fleet.accepting)
        )

    def _decide_replica(self, one: ReplicaObservation) -> None:
        replica = int(one.replica)
        seen = Observation(
            now_s=self._now_s, replicas=(one,), observed_replicas=1, requested_replicas=1
        )
        decision, self._states[replica] = self._policy.decide(
            seen, self._states[replica], self._settings.control, _REPLICA
        )
        self._apply(replica, decision.chosen)

    def _apply(self, replica: int, point: OperatingPoint) -> None:
        fleet, result = self._fleet, self.result
        if point.max_num_active_seqs != fleet.cap[replica]:
            kernel.set_cap(fleet, replica, point.max_num_active_seqs, self._now_s)
            result.cap_actions += 1
        if point.power_limit_watts != self._limits[fleet.row[replica]]:
            row = self._limits.index(point.power_limit_watts)
            kernel.set_row(fleet, replica, row, self._now_s)
            result.limit_actions += 1

    def _decide_fleet(self) -> None:
        seen = Observation(
            now_s=self._now_s,
            replicas=self._reports[0][1],
            observed_replicas=int(self._fleet.accepting.sum()),
            requested_replicas=self._target,
        )
        decision, self._fleet_state = self._policy.decide(
            seen, self._fleet_state, self._settings.control, _FLEET
        )
        wanted = decision.chosen.num_replicas
        if wanted != self._target:
            self.result.scale_actions += 1
            self._target = wanted
        self._scale()

    def _scale(self) -> None:
        """Start or drain until as many accept or start as are wanted, places permitting."""
        fleet = self._fleet
        accepting = int(fleet.accepting.sum())
        surplus = accepting + len(self._starting) - self._target
        while surplus > 0 and self._starting:  # the youngest start is given up first
            self._starting.pop()
            surplus -= 1
        for replica in np.argsort(np.where(fleet.accepting, fleet.outstanding, 1 << 60)):
            if surplus <= 0 or not fleet.accepting[replica]:
                break
            fleet.accepting[replica] = 0
            surplus -= 1
        taken = {replica for _, replica in self._starting}
        free = (k for k in range(len(fleet.on)) if not fleet.on[k] and k not in taken)
        for replica in islice(free, max(0, -surplus)):
            fleet.cap[replica] = self._settings.control.bounds.max_num_seqs
            fleet.row[replica] = 0
            self._states[replica] = ControlState()
            self._starting.append((self._now_s + self._settings.cold_start_s, replica))

    def _note(self) -> None:
        fleet, settings = self._fleet, self._settings
        kernel.joules_at(fleet, self._now_s, self._shown)
        drawn = float(self._shown.sum()) + self.result.start_joules
        accepting = fleet.accepting == 1
        limits = [self._limits[row] for row in fleet.row[accepting]]
        watts = [one for one in limits if one is not None]
        count = int(accepting.sum())
        there = int(fleet.on.sum()) + len(self._starting)
        self.result.replica_s += there * settings.tick_s
        self.result.moments.append(
            Moment(
                time_s=self._now_s,
                arrived=int(fleet.arrived.sum()),
                outstanding=int(fleet.outstanding.sum()),
                accepting=count,
                starting=len(self._starting),
                draining=int(fleet.on.sum()) - count,
                mean_cap=float(fleet.cap[accepting].mean()) if count else math.nan,
                mean_limit_watts=float(np.mean(watts)) if watts else None,
                draw_watts=(drawn - self._drawn) / settings.tick_s,
            )
        )
        self._drawn = drawn

    def close(self) -> SimResult:
        """Book what is left and return the result."""
        fleet, result = self._fleet, self.result
        kernel.settle_idle(fleet, self._now_s)
        kernel.joules_at(fleet, self._now_s, self._shown)
        result.idle_joules = float(fleet.idle_joules.sum())
        result.active_joules = float(self._shown.sum()) - result.idle_joules
        result.preemptions = int(fleet.preemptions.sum())
        result.duration_s = self._now_s
        return result


def _take(rows: Iterator[TraceRow]) -> Arrivals:
    block = list(islice(rows, BLOCK))
    return Arrivals(
        np.array([row.arrival_s for row in block], dtype=np.float64),
        np.array([row.prompt_tokens for row in block], dtype=np.int64),
        np.array([row.output_tokens for row in block], dtype=np.int64),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
