"""A fleet under a policy: cold starts, drains, failures, reports and the same ticks as live.

Every `tick_s` each accepting replica reports and decides about its own cap, limit and what the
router may give it; the fleet decides about replicas on the reports, which may be late. A wanted
replica that is not there starts cold and draws `cold_start_watts` meanwhile; one that is no longer
wanted takes no more requests and is gone when its last one has ended. Only a failure loses
requests.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
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
from policies.sim.beliefs import beliefs_of
from policies.sim.coefficients import coefficients
from policies.sim.feed import BLOCK, Feed, Requests
from policies.sim.fleet_state import (
    DONE,
    DONE_FULL,
    HELD,
    NEEDS_ARRIVALS,
    REACHED,
    new_fleet,
)
from policies.sim.fleet_steps import lose
from policies.sim.moments import Moment
from policies.sim.outcome import SimResult, SimSettings
from policies.sim.recent import Ended, joined
from policies.sim.reports import Reporter

_FLEET = frozenset({Knob.NUM_REPLICAS})
_REPLICA = frozenset({Knob.MAX_NUM_ACTIVE_SEQS, Knob.POWER_LIMIT, Knob.PACK_SEQS})
_READY, _LIMIT, _FAILURE = range(3)  # what happens between two ticks


def simulate(
    trace: Iterable[Requests], truth: FittedModel, policy: Policy, settings: SimSettings
) -> SimResult:
    """Play the trace, rows or blocks in the order of arrival. Deterministic by `settings.seed`.
    ConfigError where the fleet falls ever further behind."""
    run = _Run(trace, truth, policy, settings)
    while not run.over:
        run.tick()
    return run.close()


class _Run:
    def __init__(
        self, trace: Iterable[Requests], truth: FittedModel, policy: Policy, settings: SimSettings
    ) -> None:
        bounds, slo = settings.control.bounds, settings.control.slo
        self._settings, self._policy = settings, policy
        self._limits: list[float | None] = [None, *bounds.power_limits_watts]
        size = max(bounds.max_replicas, settings.initial_replicas, 1)
        watts = settings.cold_start_watts
        self._start_watts = truth.power.idle_watts if watts is None else watts
        self._beliefs = beliefs_of(policy, truth, size)
        believed = None if self._beliefs is None else self._beliefs.model
        self._fleet = new_fleet(
            coefficients(truth, self._limits),
            believed=None if believed is None else coefficients(believed, self._limits),
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
            targets_s=(slo.ttft_s, slo.tpot_s),
            attainable_tokens=settings.attainable_prompt_tokens,
        )
        self._feed = Feed(trace)
        self._now_s, self._ticks, self._drawn = 0.0, 0, 0.0
        self._target = settings.initial_replicas
        self._starting: list[tuple[float, int]] = []
        self._events: list[tuple[float, int, int, int]] = []
        self._told: list[float | None] = [None] * size  # limits asked for, settled or not
        self._ended: list[Ended] = []
        self._reporter = Reporter(self._fleet, self._limits, settings)
        self._reports: deque[tuple[float, tuple[ReplicaObservation, ...], Policy]] = deque()
        self._fleet_state = ControlState()
        self._states = [ControlState() for _ in range(size)]
        self.result = SimResult(policy=policy.name)
        for replica in range(settings.initial_replicas):
            kernel.accept(self._fleet, replica, 0.0)
        for when_s, replica in settings.failures:
            heapq.heappush(self._events, (when_s, _FAILURE, replica, 0))

    @property
    def over(self) -> bool:
        """Whether all has arrived and ended, or the time to drain is over."""
        end_s = self._feed.end_s
        if end_s is None:
            return False
        late = self._now_s - end_s > self._settings.drain_s
        return late or self._feed.count == self.result.completed + self.result.lost

    def tick(self) -> None:
        """Go on by one tick, then report and decide."""
        end_s = self._now_s + self._settings.tick_s
        begin_s = self._now_s
        for ready_s, _ in self._starting:
            self.result.start_joules += self._start_watts * (min(ready_s, end_s) - begin_s)
        while self._events and self._events[0][0] <= end_s:
            self._happen(*heapq.heappop(self._events))
        self._advance(end_s)
        self._ticks += 1
        ended = joined(self._ended)
        self._ended = []
        self._score(ended)
        self._release_drained()
        drawn = self._reporter.tick(end_s, ended) + self.result.start_joules
        self._decide()
        self._note(drawn)

    def _happen(self, when_s: float, kind: int, replica: int, row: int) -> None:
        fleet = self._fleet
        self._advance(max(when_s, self._now_s))
        if kind == _READY and (when_s, replica) in self._starting:
            self._starting.remove((when_s, replica))
            kernel.accept(fleet, replica, when_s)
            self._reporter.appeared(replica, when_s)
            if self._beliefs is not None:
                self._beliefs.appeared(replica)
        elif kind == _LIMIT and fleet.on[replica]:
            kernel.set_row(fleet, replica, row, when_s)
        elif kind == _FAILURE and fleet.on[replica]:
            self.result.lost += int(lose(fleet, replica, when_s))

    def _advance(self, until_s: float) -> None:
        fleet, feed = self._fleet, self._feed
        while True:
            code, feed.next = kernel.advance(fleet, until_s, feed.block, feed.next, feed.last)
            if code == NEEDS_ARRIVALS:
                feed.take()
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
        result.late_first += int((~quick).sum())
        result.slow += int((~smooth).sum())
        result.ttft.add(ended.ttft_s)
        result.tpot.add(ended.tpot_s)

    def _release_drained(self) -> None:
        fleet = self._fleet
        idle = (fleet.on == 1) & (fleet.accepting == 0) & (fleet.outstanding == 0)
        for replica in np.flatnonzero(idle):
            kernel.release(fleet, int(replica), self._now_s)

    def _decide(self) -> None:
        settings = self._settings
        replicas_turn = self._ticks % settings.replica_every == 0
        fleets_turn = self._ticks % settings.fleet_every == 0
        if not (replicas_turn or fleets_turn):
            return
        reports = self._reporter.reports(self._now_s)
        if replicas_turn:
            for one in reports:
                self._decide_replica(one)
        reports = tuple(self._with_margins(one) for one in reports)
        self._reports.append((self._now_s, reports, self._policy_of(reports)))
        while len(self._reports) > 1 and (
            self._reports[1][0] <= self._now_s - settings.report_delay_s
        ):
            self._reports.popleft()
        if fleets_turn:
            self._decide_fleet()

    def _with_margins(self, one: ReplicaObservation) -> ReplicaObservation:
        memory = self._states[int(one.replica)].memory
        return replace(one, margin=memory.margin, pace_margin=memory.pace_margin)

    def _policy_of(self, reports: Sequence[ReplicaObservation]) -> Policy:
        """The policy, on the model as the steps of these replicas correct it."""
        if self._beliefs is None:
            return self._policy
        return self._beliefs.policy(self._beliefs.correction(int(one.replica) for one in reports))

    def _decide_replica(self, one: ReplicaObservation) -> None:
        replica = int(one.replica)
        if self._beliefs is not None:
            self._beliefs.learn(self._fleet, replica, self._now_s)
        seen = Observation(
            now_s=self._now_s,
            replicas=(one,),
            observed_replicas=1,
            requested_replicas=1,
            pool_replicas=int(self._fleet.accepting.sum()),
        )
        decision, self._states[replica] = self._policy_of([one]).decide(
            seen, self._states[replica], self._settings.control, _REPLICA
        )
        self._apply(replica, decision.chosen)

    def _apply(self, replica: int, point: OperatingPoint) -> None:
        fleet, result = self._fleet, self.result
        if point.max_num_active_seqs != fleet.cap[replica]:
            kernel.set_cap(fleet, replica, point.max_num_active_seqs, self._now_s)
            result.cap_actions += 1
        if point.power_limit_watts != self._told[replica]:
            row = self._limits.index(point.power_limit_watts)
            self._told[replica] = point.power_limit_watts
            settled_s = self._now_s + self._settings.limit_settle_s
            heapq.heappush(self._events, (settled_s, _LIMIT, replica, row))
            result.limit_actions += 1
        fleet.pack_seqs[replica] = point.pack_seqs or 0
        fleet.pack_tokens[replica] = point.pack_tokens or 1 << 40

    def _decide_fleet(self) -> None:
        fleet = self._fleet
        seen = Observation(
            now_s=self._now_s,
            replicas=self._reports[0][1],
            observed_replicas=int(fleet.accepting.sum()),
            requested_replicas=self._target,
            num_queued=float(fleet.numbers[HELD]),
            pool_replicas=int(fleet.accepting.sum()),
        )
        decision, self._fleet_state = self._reports[0][2].decide(
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
        if surplus > 0:
            last = np.arange(len(fleet.on))[::-1]  # of equals, the one that is filled last goes
            for replica in np.lexsort(
                (last, np.where(fleet.accepting, fleet.outstanding, 1 << 60))
            ):
                if surplus <= 0 or not fleet.accepting[replica]:
                    break
                fleet.accepting[replica] = 0
                surplus -= 1
        if surplus < 0:
            taken = {replica for _, replica in self._starting}
            free = (k for k in range(len(fleet.on)) if not fleet.on[k] and k not in taken)
            for replica in islice(free, -surplus):
                self._start(replica)

    def _start(self, replica: int) -> None:
        fleet, settings = self._fleet, self._settings
        fleet.cap[replica] = settings.control.bounds.max_num_seqs
        fleet.row[replica], self._told[replica] = 0, None
        fleet.pack_seqs[replica] = settings.pack_seqs
        self._states[replica] = ControlState()
        ready_s = self._now_s + settings.cold_start_s
        self._starting.append((ready_s, replica))
        heapq.heappush(self._events, (ready_s, _READY, replica, 0))

    def _note(self, drawn: float) -> None:
        fleet, settings, result = self._fleet, self._settings, self.result
        accepting = fleet.accepting == 1
        limits = [self._limits[row] for row in fleet.row[accepting]]
        watts = [one for one in limits if one is not None]
        count = int(accepting.sum())
        there = int(fleet.on.sum()) + len(self._starting)
        result.replica_s += there * settings.tick_s
        result.moments.add(
            Moment(
                time_s=self._now_s,
                span_s=settings.tick_s,
                arrived=int(fleet.arrived.sum()) + int(fleet.numbers[HELD]),
                attained=result.attained,
                completed=result.completed,
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
        shown = np.zeros(len(fleet.on))
        kernel.joules_at(fleet, self._now_s, shown)
        result.arrived = self._feed.count
        result.idle_joules = float(fleet.idle_joules.sum())
        result.active_joules = float(shown.sum()) - result.idle_joules
        result.prefill_joules = float(fleet.prefill_joules.sum())
        result.preemptions = int(fleet.preemptions.sum())
        result.duration_s = self._now_s
        return result
