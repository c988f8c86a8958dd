"""The replica tick: observe → learn → decide → guard → actuate → record, about once a second.

The request path writes facts; this loop reads them. It owns the batch cap of its replica and asks
the same policy as the fleet tick, with the cap as the only free knob.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from policies.core.control import Policy
from policies.core.errors import ActuationRefused
from policies.core.types import (
    Bounds,
    ControlSettings,
    ControlState,
    Decision,
    Knob,
    Mode,
    Observation,
    ReplicaObservation,
)
from policies.core.window import Window
from policies.model.drift import Assessment, Verdict
from serve_app.accounting import EnergyAccountant
from serve_app.actuators.batch_cap import BatchCap
from serve_app.deciders import policy_for
from serve_app.engine.tap import EngineState
from serve_app.live_model import LiveModel
from serve_app.observers.recorder import Recorder
from serve_app.settings import EnergySettings, LiveSettings

log = logging.getLogger("ray.serve")

_FREE = frozenset({Knob.MAX_NUM_ACTIVE_SEQS})


@dataclass(slots=True)
class Replica:
    """What one replica's loop works on. `policy` follows `live_model` where there is one."""

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
        return self.settings.to_control_settings(bounds)

    def observe(self, now_s: float) -> ReplicaObservation:
        """One replica as it is now; percentiles over the engine tap's window."""
        slo = self.settings.slo
        draw = self.accountant.windows.draw_watts
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
            power_limit_watts=None,
        )


class ControlLoop:
    """Runs a replica's tick until `stop()`. The one place that catches broadly: a tick that fails
    is counted, logged once per cause, and the next one starts afresh."""

    def __init__(self, replica: Replica, publish: Callable[[], Awaitable[None]]) -> None:
        self.replica = replica
        self.last_decision: Decision | None = None
        self.assessment: Assessment | None = None
        self._publish = publish
        self._state = ControlState()
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
            ("report", self._publish),
        ):
            try:
                await step()
            except Exception as error:
                self._failed(stage, error)

    async def _meter(self) -> None:
        replica = self.replica
        replica.accountant.close_window()
        replica.recorder.tick(replica.accountant, replica.observe(time.monotonic()))

    async def _learn(self) -> None:
        """Compare the steps since the last tick with the model; decide with what they say."""
        replica, live = self.replica, self.replica.live_model
        if live is None:
            return
        now_s = time.monotonic()
        live.tick(replica.accountant.windows, now_s)
        if live.enabled:
            replica.policy = policy_for(replica.base, live.model, correction=live.correction)
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
            self.last_decision = None
            return
        now_s = time.monotonic()
        observation = Observation(
            now_s=now_s,
            replicas=(replica.observe(now_s),),
            observed_replicas=1,
            requested_replicas=1,
        )
        decision, self._state = replica.policy.decide(
            observation, self._state, replica.control_settings(), _FREE
        )
        self.last_decision = decision

    async def _actuate(self) -> None:
        """Bring the engine to the wanted cap. A pin by `user_config` wins over the policy; without
        either the engine runs at its full capacity."""
        replica, decision = self.replica, self.last_decision
        wanted = replica.live.max_num_active_seqs
        if wanted is None and decision is not None and replica.settings.policy.mode is Mode.ACTIVE:
            wanted = decision.chosen.max_num_active_seqs
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

    def _failed(self, stage: str, error: Exception) -> None:
        self.replica.recorder.failed(stage)
        cause = f"{stage}: {type(error).__name__}: {error}"
        if cause in self._logged:
            return
        self._logged.add(cause)
        expected = isinstance(error, ActuationRefused)
        log.log(logging.WARNING, "JouleServe tick failed at %s", cause, exc_info=not expected)
