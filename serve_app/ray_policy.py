"""The fleet tick: Ray's AutoscalingContext → Observation → the same `tick` as everywhere → a
number.

Ray makes one `EnergyPolicy` per deployment inside the Serve controller and calls it ten times a
second; a raising policy stalls every application, a slow one the whole control loop. So: no I/O,
one evaluation per `_EVALUATE_EVERY_S`, and on any fault the present target is held.

What replicas report (`record_autoscaling_stats`, floats only) is `REPORT`; -1 means "not known".
The SLO and mode in force come with the reports, so a live `user_config` reaches the controller too,
and so does what each replica's steps say about the model.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

from policies.core.control import decision_to_dict, state_from_dict, state_to_dict
from policies.core.types import (
    SLO,
    Bounds,
    ControlSettings,
    ControlState,
    Decision,
    Knob,
    Mode,
    Observation,
    ReplicaObservation,
)
from policies.model.fitted import FittedModel
from policies.model.online import Correction, fleet_correction
from serve_app.deciders import policy_for
from serve_app.settings import parse_energy

log = logging.getLogger("ray.serve")

_EVALUATE_EVERY_S = 1.0  # as often as replicas report
_FREE = frozenset({Knob.NUM_REPLICAS})  # each replica owns its batch cap (DESIGN §1.3)
_STATE_KEY = "jouleserve"
UNKNOWN = -1.0
REPORT = (
    "num_running",
    "num_waiting",
    "arrival_rate_per_s",
    "prompt_tokens",
    "output_tokens",
    "ttft_s",
    "tpot_s",
    "draw_watts",
    "max_num_active_seqs",
    "power_limit_watts",
    "min_active_seqs",
    "max_num_seqs",
    "slo_ttft_s",
    "slo_tpot_s",
    "slo_percentile",
    "mode",
    "step_time_ratio",
    "energy_ratio",
    "at_bound",
)
_MODES = (Mode.OFF, Mode.ADVISORY, Mode.ACTIVE)


def report(
    observation: ReplicaObservation,
    settings: ControlSettings,
    correction: Correction | None = None,
) -> dict[str, float]:
    """A replica's autoscaling stats; its caps stand in `settings.bounds`. Always the same keys:
    Ray drops a replica's stats for good when one return is malformed."""
    learned = correction or Correction()
    values: dict[str, float | int | None] = {
        name: getattr(observation, name, None) for name in REPORT
    } | {
        "min_active_seqs": settings.bounds.min_active_seqs,
        "max_num_seqs": settings.bounds.max_num_seqs,
        "slo_ttft_s": settings.slo.ttft_s,
        "slo_tpot_s": settings.slo.tpot_s,
        "slo_percentile": settings.slo.percentile,
        "mode": _MODES.index(settings.mode),
        "step_time_ratio": learned.step_time_ratio,
        "energy_ratio": learned.energy_ratio,
        "at_bound": learned.at_bound,
    }
    return {name: UNKNOWN if value is None else float(value) for name, value in values.items()}


class EnergyPolicy:
    """Ray Serve autoscaling policy (a class: `policy_kwargs` are its arguments, JSON only).

    `settings`: the `energy:` block; `profile`: the fitted model as a dict, or None.
    """

    def __init__(
        self, settings: dict[str, Any] | None = None, profile: dict[str, Any] | None = None
    ) -> None:
        self._energy = parse_energy(settings or {}, "policy_kwargs")
        source = "policy_kwargs.profile"
        self._model = FittedModel.from_dict(profile, source=source) if profile else None
        self._context: Any = None
        self._evaluated_s: float | None = None
        self._wanted = 0
        self._last_logged: tuple[Any, ...] = ()

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
            reports = latest_reports(context)
            if context.current_num_replicas == 0 or not reports:
                return held, state  # starting, or just redeployed: nothing is known yet
            decision, control = self._decide(context, reports, state, now_s)
            state[_STATE_KEY] = state_to_dict(control)
            self._wanted = decision.chosen.num_replicas
            self._log(decision, context)
        except Exception:
            log.exception("JouleServe policy failed; holding %d replicas", held)
            self._wanted = held
        return self._wanted, state

    def _decide(
        self,
        context: Any,
        reports: dict[str, dict[str, float]],
        state: dict[str, Any],
        now_s: float,
    ) -> tuple[Decision, ControlState]:
        self._context = context
        observation = observe(context, reports, now_s)
        settings = self._settings(context, reports)
        control = state_from_dict(state[_STATE_KEY]) if _STATE_KEY in state else ControlState()
        correction = self._correction(observation, reports)
        policy = policy_for(self._energy, self._model, self._ray_default, correction)
        return policy.decide(observation, control, settings, _FREE)

    def _correction(
        self, observation: Observation, reports: dict[str, dict[str, float]]
    ) -> Correction:
        """What the steps of the replicas with a fresh report say about the model."""
        return fleet_correction(
            (
                _correction_of(reports[one.replica])
                for one in observation.replicas
                if abs(observation.now_s - one.time_s) <= self._energy.policy.stale_after_s
            ),
            self._energy.model_correction.to_correction_settings(),
        )

    def _settings(self, context: Any, reports: dict[str, dict[str, float]]) -> ControlSettings:
        """Start-time settings, Ray's bounds, and the SLO and mode that the replicas have in force
        (the strictest where they differ: an update is on its way)."""
        bounds = Bounds(
            min_replicas=context.capacity_adjusted_min_replicas,
            max_replicas=context.capacity_adjusted_max_replicas,
            min_active_seqs=int(min(r["min_active_seqs"] for r in reports.values())),
            max_num_seqs=int(min(r["max_num_seqs"] for r in reports.values())),
        )
        settings = self._energy.to_control_settings(bounds)
        live = reports.values()
        slo = SLO(
            ttft_s=min(r["slo_ttft_s"] for r in live),
            tpot_s=min(r["slo_tpot_s"] for r in live),
            percentile=max(r["slo_percentile"] for r in live),
        )
        return replace(settings, slo=slo, mode=_MODES[int(min(r["mode"] for r in live))])

    def _ray_default(self, observation: Observation) -> int:
        """Ray's own rule, through Ray's own function."""
        from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy

        desired, _ = replica_queue_length_autoscaling_policy(self._context)
        return max(1, -int(-desired // 1)) if observation.observed_replicas else 1

    def _log(self, decision: Decision, context: Any) -> None:
        """One line per change of mind, not per tick."""
        key = (decision.chosen, decision.proposed.num_replicas, decision.reason)
        if key != self._last_logged:
            self._last_logged = key
            line = {"deployment": context.deployment_name, **decision_to_dict(decision)}
            log.info("jouleserve_fleet_decision %s", json.dumps(line))


def latest_reports(context: Any) -> dict[str, dict[str, float]]:
    """Replica id → its latest report, each with `time_s` (the replica's wall clock). Replicas whose
    report lacks a key are left out."""
    raw = context.raw_metrics or {}
    reports: dict[str, dict[str, float]] = {}
    for name in REPORT:
        for replica, series in (raw.get(name) or {}).items():
            if series:
                newest = series[-1]
                entry = reports.setdefault(str(getattr(replica, "unique_id", replica)), {})
                entry[name] = float(newest.value)
                entry["time_s"] = float(newest.timestamp)
    return {key: entry for key, entry in reports.items() if all(n in entry for n in REPORT)}


def observe(context: Any, reports: dict[str, dict[str, float]], now_s: float) -> Observation:
    """What the fleet tick sees. Replicas that Ray no longer counts as running are left out;
    requests that still wait in Ray's handles count as waiting, spread over all engines."""
    running = {str(getattr(r, "unique_id", r)) for r in context.running_replicas or ()}
    counted = {n: v for n, v in sorted(reports.items()) if not running or n in running}
    queued = max(0.0, float(context.total_queued_requests or 0.0)) / max(1, len(counted))
    return Observation(
        now_s=now_s,
        replicas=tuple(
            _replica(name, values | {"num_waiting": values["num_waiting"] + queued})
            for name, values in counted.items()
        ),
        observed_replicas=context.current_num_replicas,
        requested_replicas=context.target_num_replicas,
    )


def _correction_of(values: dict[str, float]) -> Correction:
    return Correction(
        step_time_ratio=_known(values, "step_time_ratio"),
        energy_ratio=_known(values, "energy_ratio"),
        at_bound=values["at_bound"] > 0.0,
    )


def _known(values: dict[str, float], key: str) -> float | None:
    return None if values[key] == UNKNOWN else values[key]


def _replica(name: str, values: dict[str, float]) -> ReplicaObservation:
    def known(key: str) -> float | None:
        return _known(values, key)

    cap = known("max_num_active_seqs")
    return ReplicaObservation(
        replica=name,
        time_s=values["time_s"],
        num_running=values["num_running"],
        num_waiting=values["num_waiting"],
        arrival_rate_per_s=values["arrival_rate_per_s"],
        prompt_tokens=known("prompt_tokens"),
        output_tokens=known("output_tokens"),
        ttft_s=known("ttft_s"),
        tpot_s=known("tpot_s"),
        draw_watts=known("draw_watts"),
        max_num_active_seqs=None if cap is None else int(cap),
        power_limit_watts=known("power_limit_watts"),
    )
