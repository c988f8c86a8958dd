"""The replica tick: observe → learn → decide → guard → actuate → record, about once a second.

The request path writes facts; this loop reads them. It owns the batch cap and the power limit of
its replica and what the router may give it, and asks the same policy as the fleet tick with these
knobs free.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from policies.core.control import Policy
from policies.core.errors import ActuationRefused
from policies.core.types import (
    SLO,
    Bounds,
    ControlSettings,
    ControlState,
    Decision,
    Knob,
    Mode,
    Observation,
    OperatingPoint,
    ReplicaObservation,
)
from policies.core.window import Window
from policies.model.drift import Assessment, Verdict
from policies.model.fitted import FittedModel
from policies.model.online import Correction
from serve_app.accounting import EnergyAccountant
from serve_app.actuators.base import LimitState
from serve_app.actuators.batch_cap import BatchCap
from serve_app.actuators.no_limit import NoLimits
from serve_app.actuators.replica_limit import ReplicaLimit
from serve_app.deciders import Serving, policy_for
from serve_app.decisions.approval import Approved
from serve_app.decisions.feed import Asked, Changes, record_of
from serve_app.decisions.record import Record
from serve_app.engine.tap import EngineState
from serve_app.live_model import LiveModel
from serve_app.observers.recorder import Recorder
from serve_app.settings import EnergySettings, LiveSettings
from serve_app.simulator.attainable import attainable_prompt_tokens

log = logging.getLogger("ray.serve")

_UNCOUNTED = 1 << 20
_UNPUBLISHED = 64
_FREE = frozenset({Knob.MAX_NUM_ACTIVE_SEQS, Knob.POWER_LIMIT, Knob.PACK_SEQS})


@dataclass(slots=True)
class Replica:
    """What one replica's loop works on. `policy` follows `live_model` where there is one.

    `hint`: the last decision as far as it was acted on; the router is told its `pack_seqs` and
    `pack_tokens`. `pool_replicas`: how many share the arrivals, None until that is known.
    `correction`: of the model that `policy` has. `budget_watts`: what budgets leave for each of its
    GPUs, None = all. `approved`: by an operator, as the ledger last said.
    """

    name: str
    accountant: EnergyAccountant
    engine: EngineState
    cap: BatchCap
    recorder: Recorder
    policy: Policy
    base: EnergySettings
    live: LiveSettings
    output_tokens: Window
    live_model: LiveModel | None = None
    limit: ReplicaLimit = field(default_factory=lambda: ReplicaLimit(NoLimits()))
    serving: Serving = field(default_factory=Serving)
    deployment: str = ""
    correction: Correction | None = None
    approved: Approved = field(default_factory=Approved)
    state: ControlState = field(default_factory=ControlState)
    hint: OperatingPoint | None = None
    pool_replicas: int | None = None
    budget_watts: float | None = None

    @property
    def settings(self) -> EnergySettings:
        """The settings in force: start-time ones under the live overrides."""
        return self.live.over(self.base)

    def control_settings(self) -> ControlSettings:
        """A cap pinned by the user leaves the policy no other to choose or to plan with."""
        capacity = self.cap.in_force.max_num_seqs if self.cap.in_force else Bounds().max_num_seqs
        pin = self.live.max_num_active_seqs
        if pin is None:
            bounds = Bounds(max_num_seqs=capacity)
        else:
            pin = min(pin, capacity)
            bounds = Bounds(min_active_seqs=pin, max_num_seqs=pin)
        bounds = replace(bounds, fleet_budget_watts=self.settings.power.fleet_budget_watts)
        return self.settings.to_control_settings(self.limit.over(bounds))

    def own_settings(self) -> ControlSettings:
        """`control_settings` with this replica's share of the fleet's power budget: as long as
        nobody has told how many share it, the least that there is."""
        settings = self.control_settings()
        bounds = settings.bounds
        if bounds.limits == (None,):
            return replace(settings, bounds=replace(bounds, fleet_budget_watts=None))
        gpus = self.model.power.num_devices if self.model is not None else 1
        pool = _UNCOUNTED if self.pool_replicas is None else self.pool_replicas
        return replace(settings, bounds=bounds.shared_by(pool * gpus))

    def observe(self, now_s: float) -> ReplicaObservation:
        """One replica as it is now; percentiles over the engine tap's window."""
        slo = self.settings.slo
        draw = self.accountant.windows.draw_watts
        demand, memory, hint = self.accountant.demand, self.state.memory, self.hint
        prompt_bins, output_bins = demand.bins(now_s)
        return ReplicaObservation(
            replica=self.name,
            time_s=now_s,
            num_running=float(self.engine.num_running),
            num_waiting=float(self.engine.num_waiting),
            arrival_rate_per_s=self.accountant.arrivals.rate_per_s(now_s),
            prompt_tokens=self.accountant.arrivals.mean(now_s),
            output_tokens=self.output_tokens.mean(now_s),
            ttft_s=self.engine.ttft_s.percentile(slo.percentile, now_s),
            tpot_s=self.engine.tpot_s.percentile(slo.percentile, now_s),
            draw_watts=math.fsum(draw.values()) if draw else None,
            max_num_active_seqs=self.cap.in_force.max_num_active_seqs
            if self.cap.in_force
            else None,
            power_limit_watts=self.limit.in_force_watts,
            pack_seqs=hint.pack_seqs if hint else None,
            pack_tokens=hint.pack_tokens if hint else None,
            waiting_prompt_tokens=float(demand.waiting_prompt_tokens),
            recent_rate_per_s=demand.recent_per_s(now_s),
            num_judged=float(demand.judged),
            num_late=float(demand.late),
            num_slow=float(demand.slow),
            margin=memory.margin,
            pace_margin=memory.pace_margin,
            prompt_bins=prompt_bins,
            output_bins=output_bins,
        )

    @property
    def model(self) -> FittedModel | None:
        """The model as live steps correct it; None where there is none, or none to act on."""
        live = self.live_model
        if live is None:
            return None
        correction = live.correction
        return live.model if correction is None else correction.apply(live.model)

    def draw_watts_per_gpu(self) -> float | None:
        """Mean draw of its GPUs over the last meter window; None where it is not known."""
        windows = self.accountant.windows
        gpus = sum(one.device.kind == "gpu" for one in windows.devices)
        draw = windows.draw_watts.get("gpu")
        return None if draw is None or not gpus else draw / gpus

    def acted_on(self, decision: Decision | None) -> OperatingPoint | None:
        """The point to bring this replica to; None = none of ours. In approve mode it is the last
        one that an operator has approved, whatever has been decided since."""
        mode = self.settings.policy.mode
        if decision is None or mode not in {Mode.ACTIVE, Mode.APPROVE}:
            return None
        return decision.chosen if mode is Mode.ACTIVE else self.approved.point

    def judge_by_settings(self) -> None:
        """Let requests be judged by the SLO in force, and those too long for it not at all."""
        demand, slo, model = self.accountant.demand, self.settings.slo.to_slo(), self.model
        if model is None or not self.serving.max_num_batched_tokens:
            demand.slo, demand.attainable_tokens = slo, None
            return
        demand.slo = slo
        demand.attainable_tokens = _attainable(model, slo, self.serving.max_num_batched_tokens)


@lru_cache(maxsize=8)
def _attainable(model: FittedModel, slo: SLO, budget_tokens: int) -> int:
    return attainable_prompt_tokens(model, slo, budget_tokens)


class ControlLoop:
    """Runs a replica's tick until `stop()`. The one place that catches broadly: a tick that fails
    is counted, logged once per cause, and the next one starts afresh."""

    def __init__(self, replica: Replica, publish: Callable[[], Awaitable[None]]) -> None:
        self.replica = replica
        self.last_decision: Decision | None = None
        self.assessment: Assessment | None = None
        self.decided: deque[Record] = deque(maxlen=_UNPUBLISHED)
        self._changes = Changes()
        self._publish = publish
        self._task: asyncio.Task[None] | None = None
        self._logged: set[str] = set()

    def start(self) -> None:
        """Start ticking on the running event loop."""
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        interval_s = self.replica.base.meter.interval_s
        while True:
            started_s = time.monotonic()
            await self.tick()
            await asyncio.sleep(max(0.05, interval_s - (time.monotonic() - started_s)))

    async def tick(self) -> None:
        """One tick; never raises."""
        for stage, step in (
            ("meter", self._meter),
            ("model", self._learn),
            ("policy", self._decide),
            ("actuate", self._actuate),
            ("power limit", self._limit),
            ("report", self._publish),
        ):
            try:
                await step()
            except Exception as error:
                self._failed(stage, error)

    async def _meter(self) -> None:
        replica = self.replica
        replica.judge_by_settings()
        replica.accountant.close_window()
        settings = replica.settings
        replica.recorder.targets(
            settings.slo.to_slo(), settings.power.fleet_budget_watts, settings.policy.mode
        )
        replica.recorder.tick(replica.accountant, replica.observe(time.monotonic()))

    async def _learn(self) -> None:
        """Compare the steps since the last tick with the model; decide with what they say."""
        replica, live = self.replica, self.replica.live_model
        if live is None:
            return
        now_s = time.monotonic()
        live.tick(replica.accountant.windows, now_s)
        if live.enabled:
            replica.correction = live.correction
            replica.policy = policy_for(
                replica.base, live.model, correction=replica.correction, serving=replica.serving
            )
        before, self.assessment = self.assessment, live.assess(now_s)
        replica.recorder.model(live.state, live.correction, self.assessment, live.residual_ratio)
        if self.assessment is not None and (
            before is None or before.verdict is not self.assessment.verdict
        ):
            refit = self.assessment.verdict is Verdict.REFIT_SUGGESTED
            log.log(
                logging.WARNING if refit else logging.INFO,
                "jouleserve_model %s: %s",
                self.assessment.verdict.value,
                self.assessment.reason,
            )

    async def _decide(self) -> None:
        replica = self.replica
        if replica.settings.metering_only:
            self.last_decision = replica.hint = replica.budget_watts = None
            return
        now_s = time.monotonic()
        observation = Observation(
            now_s=now_s,
            replicas=(replica.observe(now_s),),
            observed_replicas=1,
            requested_replicas=1,
            pool_replicas=replica.pool_replicas or 1,
        )
        settings = replica.own_settings()
        replica.budget_watts = settings.bounds.max_limit_watts
        asked = Asked(
            observation=observation,
            state=replica.state,
            settings=settings,
            free=_FREE,
            correction=replica.correction,
            serving=replica.serving,
        )
        decision, replica.state = replica.policy.decide(observation, replica.state, settings, _FREE)
        self.last_decision = decision
        self._record(decision, asked)
        replica.hint = replica.acted_on(decision)

    def _record(self, decision: Decision, asked: Asked) -> None:
        """Keep a new decision until it is published; of those that nobody takes, the last ones."""
        replica = self.replica
        log_is_on = replica.base.decision_log.enabled
        if not log_is_on or not self._changes.is_new(decision, asked.settings.mode):
            return
        owner = (replica.deployment, replica.name)
        model = replica.live_model.model if replica.live_model is not None else None
        self.decided.append(record_of(decision, asked, replica.base, model, owner))

    async def _actuate(self) -> None:
        """Bring the engine to the wanted cap. A pin by `user_config` wins over the policy; without
        either the engine runs at its full capacity."""
        replica, decision = self.replica, self.last_decision
        wanted = replica.live.max_num_active_seqs
        acted_on = replica.acted_on(decision)
        if wanted is None and acted_on is not None:
            wanted = acted_on.max_num_active_seqs
        in_force = await replica.cap.read()
        if wanted is None:
            wanted = in_force.max_num_seqs
        wanted = min(wanted, in_force.max_num_seqs)
        if wanted != in_force.max_num_active_seqs:
            await replica.cap.set(wanted)
            log.info(
                "jouleserve_cap %d -> %d (%s), %d running",
                in_force.max_num_active_seqs,
                wanted,
                decision.reason.value if decision else "pinned",
                in_force.num_running,
            )
        if decision is not None:
            replica.recorder.decision(decision, wanted)

    async def _limit(self) -> None:
        """Bring the GPUs to the wanted power limit; every tick, since a lease must be renewed."""
        replica, decision = self.replica, self.last_decision
        acted_on = replica.acted_on(decision)
        before = replica.limit.state
        point = acted_on or (decision.chosen if decision is not None else None)
        wanted = point.power_limit_watts if point is not None else None
        state = await replica.limit.bring(wanted, active=acted_on is not None)
        if replica.live_model is not None:
            replica.live_model.under(replica.limit.in_force_watts)
        replica.recorder.limit(state, inert=replica.limit.judge(replica.draw_watts_per_gpu()))
        self._tell_limit(before, state)

    def _tell_limit(self, before: LimitState | None, state: LimitState) -> None:
        """One line per change."""
        if before is not None and before.limit_watts != state.limit_watts:
            log.info(
                "jouleserve_power_limit %s -> %s W (asked %s)",
                before.limit_watts,
                state.limit_watts,
                state.asked_watts,
            )
        told = before is not None and before.reason == state.reason
        if not told and state.reason is not None and self.replica.limit.name != "none":
            log.warning("jouleserve_power_limit unavailable: %s", state.reason)
        if state.drift_watts is not None and (before is None or before.drift_watts is None):
            log.warning("jouleserve_power_limit another program has set %s W", state.drift_watts)

    def _failed(self, stage: str, error: Exception) -> None:
        self.replica.recorder.failed(stage)
        cause = f"{stage}: {type(error).__name__}: {error}"
        if cause in self._logged:
            return
        self._logged.add(cause)
        expected = isinstance(error, ActuationRefused)
        log.log(logging.WARNING, "JouleServe tick failed at %s", cause, exc_info=not expected)
