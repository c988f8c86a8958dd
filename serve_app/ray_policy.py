"""The fleet tick: Ray's AutoscalingContext → Observation → the same `tick` as everywhere → a
number.

Ray makes one `EnergyPolicy` per deployment inside the Serve controller and calls it ten times a
second; a raising policy stalls every application, a slow one the whole control loop. So: no I/O,
one evaluation per `_EVALUATE_EVERY_S`, and on any fault the present target is held.

What replicas report (`record_autoscaling_stats`) is in `serve_app.replica_report`. The SLO and mode
in force come with the reports, so a live `user_config` reaches the controller too, and so does what
each replica's steps say about the model.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from policies.core.control import Policy, decision_to_dict, state_from_dict, state_to_dict
from policies.core.types import (
    SLO,
    Bounds,
    ControlSettings,
    ControlState,
    Decision,
    Knob,
    Mode,
    Observation,
)
from policies.model.fitted import FittedModel
from policies.model.online import Correction
from serve_app.deciders import RAY_DEFAULT, Serving, policy_for
from serve_app.decisions.feed import Asked
from serve_app.decisions.fleet import FleetReporter
from serve_app.fleet_reports import NOTHING, Reports, latest_reports
from serve_app.replica_report import MODES
from serve_app.settings import parse_energy
from serve_app.simulator.models import default_limits

log = logging.getLogger("ray.serve")

_EVALUATE_EVERY_S = 1.0  # as often as replicas report
_FREE = frozenset({Knob.NUM_REPLICAS})  # each replica owns its other knobs (DESIGN §1.3)
_STRICTEST = ("min_active_seqs", "max_num_seqs", "slo_ttft_s", "slo_tpot_s", "mode")
Told = tuple[Bounds, tuple[float, ...], float]  # Ray's bounds, `_STRICTEST`, the SLO's percentile
_STATE_KEY, _TIMES_KEY = "jouleserve", "jouleserve_decision_s"


@dataclass(slots=True)
class DecisionTimes:
    """How long decisions have taken this process, seconds: reading the reports, deciding, and
    writing the state down."""

    count: int = 0
    last_s: float = 0.0
    mean_s: float = 0.0
    max_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.last_s = seconds
        self.mean_s += (seconds - self.mean_s) / self.count
        self.max_s = max(self.max_s, seconds)


class EnergyPolicy:
    """Ray Serve autoscaling policy (a class: `policy_kwargs` are its arguments, JSON only).

    `settings`: the `energy:` block; `profile`: the fitted model as a dict, or None; `packed`:
    whether the request router is ours; `built_ns`: when the application was built, only so that no
    two builds give Ray the same (ADR 0015).
    """

    def __init__(
        self,
        settings: dict[str, Any] | None = None,
        profile: dict[str, Any] | None = None,
        packed: bool = False,
        built_ns: int = 0,  # noqa: ARG002
    ) -> None:
        self._energy = parse_energy(settings or {}, "policy_kwargs")
        source = "policy_kwargs.profile"
        self._model = FittedModel.from_dict(profile, source=source) if profile else None
        self._limits_watts = default_limits(self._model) if self._model is not None else ()
        self._packed = packed
        self._in_force: tuple[Told, ControlSettings] | None = None  # as replicas last reported it
        self._times = DecisionTimes()
        self._evaluated_s: float | None = None
        self._wanted = 0
        self._last_logged: tuple[Any, ...] = ()
        self._written: tuple[dict[str, Any] | None, ControlState] = (None, ControlState())
        self._asked: tuple[tuple[Correction, Serving], Policy] | None = None
        self._news = FleetReporter(self._energy, self._model)

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """(wanted replicas, policy state). Never raises, never blocks."""
        state = dict(context.policy_state or {})
        held = context.target_num_replicas
        try:
            now_s = float(context.current_time or 0.0)
            if self._evaluated_s is not None and 0 <= now_s - self._evaluated_s < _EVALUATE_EVERY_S:
                return self._wanted, state
            self._evaluated_s = now_s
            self._wanted = held
            began_s = time.perf_counter()
            asleep = context.current_num_replicas == context.target_num_replicas == 0
            reports = NOTHING if asleep else latest_reports(context)
            if not asleep and (context.current_num_replicas == 0 or not reports):
                return held, state  # starting, or just redeployed: nothing is known yet
            decision, control, asked = self._decide(context, reports, state, now_s)
            state[_STATE_KEY] = state_to_dict(control)
            self._written = (state[_STATE_KEY], control)
            self._times.add(time.perf_counter() - began_s)
            state[_TIMES_KEY] = asdict(self._times)
            self._wanted = _acted_on(decision, asked, reports)
            self._log(decision, context)
            self._news.decided(context, decision, asked, self._times.last_s)
        except Exception:
            log.exception("JouleServe policy failed; holding %d replicas", held)
            self._wanted = held
            self._news.failed(context)
        return self._wanted, state

    def _decide(
        self,
        context: Any,
        reports: Reports,
        state: dict[str, Any],
        now_s: float,
    ) -> tuple[Decision, ControlState, Asked]:
        observation = observe(context, reports, now_s)
        settings = self._settings(context, reports)
        control = self._control(state)
        correction = reports.correction(
            now_s,
            self._energy.policy.stale_after_s,
            self._energy.model_correction.to_correction_settings(),
        )
        tokens = min(reports.known("max_num_batched_tokens"), default=0.0)
        serving = Serving(packed=self._packed, max_num_batched_tokens=int(tokens) or None)
        policy = self._policy(context, correction, serving)
        asked = Asked(
            observation=observation,
            state=control,
            settings=settings,
            free=_FREE,
            correction=correction,
            serving=serving,
        )
        return *policy.decide(observation, control, settings, _FREE), asked

    def _control(self, state: dict[str, Any]) -> ControlState:
        """The state that was written down; the one it was, where Ray hands back the same."""
        written, control = self._written
        if written is None or state.get(_STATE_KEY) is not written:
            return state_from_dict(state.get(_STATE_KEY))
        return control

    def _policy(self, context: Any, correction: Correction, serving: Serving) -> Policy:
        """The policy that was asked last time, as long as it would be made the same."""
        made = (correction, serving)
        if self._asked is not None and self._asked[0] == made:
            return self._asked[1]
        rays_own = partial(_ray_default, context)
        policy = policy_for(self._energy, self._model, rays_own, correction, serving)
        # That one knows the context of this tick.
        self._asked = None if self._energy.policy.name == RAY_DEFAULT else (made, policy)
        return policy

    def _settings(self, context: Any, reports: Reports) -> ControlSettings:
        """Start-time settings, Ray's bounds, and the SLO and mode that the replicas have in force
        (the strictest where they differ: an update is on its way), or had when there were any."""
        bounds = Bounds(
            min_replicas=context.capacity_adjusted_min_replicas,
            max_replicas=context.capacity_adjusted_max_replicas,
        )
        if not reports:
            before = self._energy.to_control_settings(bounds)
            if self._in_force is not None:
                _, before = self._in_force
            kept = replace(
                before.bounds, min_replicas=bounds.min_replicas, max_replicas=bounds.max_replicas
            )
            return replace(before, bounds=kept)
        bounds = self._with_limits(bounds, reports)
        told = (bounds, reports.least(*_STRICTEST), reports.most("slo_percentile"))
        if self._in_force is None or told != self._in_force[0]:
            self._in_force = (told, self._as_told(*told))
        return self._in_force[1]

    def _with_limits(self, bounds: Bounds, reports: Reports) -> Bounds:
        """`bounds` with the power limits that every replica can set, and the lowest cap of any;
        none where one of them cannot set any: the fleet must not count on it."""
        least, most = (reports.known(f"{one}_limit_watts") for one in ("least", "most"))
        if len(least) < len(reports) or len(most) < len(reports):
            return bounds
        low, high = max(least), min(most)
        found = replace(
            bounds,
            power_limits_watts=tuple(one for one in self._limits_watts if low <= one <= high),
            max_limit_watts=min(reports.known("max_limit_watts"), default=None),
            fleet_budget_watts=min(reports.known("fleet_budget_watts"), default=None),
        )
        return found.affordable(self._model.power.num_devices if self._model is not None else 1)

    def _as_told(
        self, bounds: Bounds, strictest: tuple[float, ...], percentile: float
    ) -> ControlSettings:
        """Start-time settings with `bounds` and the replicas' values of `_STRICTEST`."""
        min_active_seqs, max_num_seqs, ttft_s, tpot_s, mode = strictest
        bounds = replace(
            bounds, min_active_seqs=int(min_active_seqs), max_num_seqs=int(max_num_seqs)
        )
        return replace(
            self._energy.to_control_settings(bounds),
            slo=SLO(ttft_s=ttft_s, tpot_s=tpot_s, percentile=percentile),
            mode=MODES[int(mode)],
        )

    def _log(self, decision: Decision, context: Any) -> None:
        """One line per change of mind, not per tick."""
        said = decision.notes[0].partition(" ")[0] if decision.notes else ""
        key = (decision.chosen, decision.proposed.num_replicas, decision.reason, said)
        if key != self._last_logged:
            self._last_logged = key
            line = {
                "deployment": context.deployment_name,
                "decision_s": round(self._times.last_s, 6),
                **decision_to_dict(decision),
            }
            log.info("jouleserve_fleet_decision %s", json.dumps(line))


def _acted_on(decision: Decision, asked: Asked, reports: Reports) -> int:
    """The replicas to ask Ray for: what was decided, or what an operator has approved last."""
    settings = asked.settings
    approved = reports.known("approved_replicas") if settings.mode is Mode.APPROVE else []
    if not approved:
        return decision.chosen.num_replicas
    bounds = settings.bounds
    return int(min(max(*approved, bounds.min_replicas), bounds.max_replicas))


def _ray_default(context: Any, observation: Observation) -> int:
    """Ray's own rule, through Ray's own function."""
    from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy

    desired, _ = replica_queue_length_autoscaling_policy(context)
    return int(max(min(observation.observed_replicas, 1), math.ceil(desired)))


def observe(context: Any, reports: Reports, now_s: float) -> Observation:
    """What the fleet tick sees. Requests that still wait in Ray's handles count as waiting, spread
    over all engines."""
    queued = max(0.0, float(context.total_queued_requests or 0.0))
    return Observation(
        now_s=now_s,
        replicas=tuple(reports.observations(queued)),
        observed_replicas=context.current_num_replicas,
        requested_replicas=context.target_num_replicas,
        num_queued=queued,
        pool_replicas=max(context.current_num_replicas, 1),
    )
