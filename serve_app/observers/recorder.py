"""Turns one replica's facts into metrics. No decision is taken here and none depends on it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from policies.core.attribution import RequestEnergy
from policies.core.energy import EnergyBooks
from policies.core.types import SLO, Decision, Mode, ReplicaObservation
from policies.model.drift import Assessment, Verdict
from policies.model.online import Correction, CorrectionState
from serve_app.accounting import EnergyAccountant
from serve_app.actuators.base import LimitState
from serve_app.engine.tap import FinishedRequest
from serve_app.observers.metrics import MetricSet


class Recorder:
    """Writes requests, ticks and decisions into a `MetricSet`."""

    def __init__(self, metrics: MetricSet) -> None:
        self.metrics = self._metrics = metrics
        self._booked: dict[tuple[str, ...], float] = {}
        self._gaps_s: list[float] = []

    def finished(self, request: FinishedRequest, energy: RequestEnergy, slo: SLO) -> None:
        """One answered request."""
        m = self._metrics
        m.inc("jouleserve_requests", outcome=request.outcome)
        m.inc("jouleserve_slo_requests", verdict=verdict(request, slo))
        m.inc("jouleserve_prompt_tokens", request.prompt_tokens)
        m.inc("jouleserve_output_tokens", request.output_tokens)
        m.observe("jouleserve_time_to_first_token_seconds", request.ttft_s)
        m.observe("jouleserve_time_per_output_token_seconds", request.tpot_s)
        self._energy(energy)

    def aborted(self, energy: RequestEnergy) -> None:
        """One request that left without an answer: an SLO miss, and its joules count."""
        self._metrics.inc("jouleserve_requests", outcome="abort")
        self._metrics.inc("jouleserve_slo_requests", verdict="failed")
        self._energy(energy)

    def refused(self) -> None:
        """One request that was not taken: an SLO miss that cost nothing."""
        self._metrics.inc("jouleserve_requests", outcome="refused")
        self._metrics.inc("jouleserve_slo_requests", verdict="failed")

    def _energy(self, energy: RequestEnergy) -> None:
        m = self._metrics
        m.observe("jouleserve_request_energy_joules", energy.joules)
        m.inc("jouleserve_phase_energy_joules", energy.prefill_joules or 0.0, phase="prefill")
        m.inc("jouleserve_phase_energy_joules", energy.decode_joules or 0.0, phase="decode")

    def itl(self, gaps_s: Sequence[float]) -> None:
        """Gaps between two tokens; told to the metrics on the next tick, all at once."""
        self._gaps_s += gaps_s

    def targets(self, slo: SLO, fleet_budget_watts: float | None, mode: Mode) -> None:
        """What is in force now: targets, the fleet's power budget, and the mode."""
        m = self._metrics
        m.set("jouleserve_slo_ttft_seconds", slo.ttft_s)
        m.set("jouleserve_slo_tpot_seconds", slo.tpot_s)
        m.set("jouleserve_slo_objective_ratio", slo.percentile)
        m.set("jouleserve_fleet_budget_watts", fleet_budget_watts)
        for one in Mode:
            m.set("jouleserve_mode", float(one is mode), mode=one.value)

    def tick(self, accountant: EnergyAccountant, seen: ReplicaObservation) -> None:
        """The state after a meter window. Gauges are set every tick: Ray drops silent ones."""
        m = self._metrics
        m.set("jouleserve_num_requests_running", seen.num_running)
        m.set("jouleserve_num_requests_waiting", seen.num_waiting)
        m.set("jouleserve_arrival_rate_per_second", seen.arrival_rate_per_s)
        m.set("jouleserve_max_num_active_seqs", seen.max_num_active_seqs)
        m.set("jouleserve_power_limit_watts", seen.power_limit_watts)
        windows = accountant.windows
        if windows.last_reading_s is not None:
            age_s = max(0.0, seen.time_s - windows.last_reading_s)
            m.set("jouleserve_meter_age_seconds", age_s)
        unavailable = windows.unavailable
        for kind in windows.sources.keys() | unavailable.keys():
            available = kind not in unavailable
            m.set("jouleserve_meter_available", float(available), meter=kind)
            m.set("jouleserve_power_watts", windows.draw_watts.get(kind), device=kind)
        self.books(accountant)

    def books(self, accountant: EnergyAccountant) -> None:
        """What the books hold and how the sensors are, after a meter window."""
        m, windows = self._metrics, accountant.windows
        m.observe_all("jouleserve_inter_token_latency_seconds", self._gaps_s)
        self._gaps_s.clear()
        for device in windows.devices:
            name = device.device.id
            for fault, count in device.anomaly_counts.items():
                self._advance("jouleserve_meter_anomalies", count, sensor=name, kind=fault.value)
            m.set("jouleserve_meter_cross_check_ratio", device.cross_check_ratio, sensor=name)
        self._books(accountant.books, windows.sources)

    def _books(self, books: EnergyBooks, sources: dict[str, str]) -> None:
        shares = {"requests": books.settled, "idle": books.idle, "unattributed": books.unattributed}
        for kind, joules in books.metered.items():
            source = sources.get(kind, "")
            self._advance("jouleserve_energy_joules", joules, device=kind, source=source)
            for share, by_kind in shares.items():
                part = by_kind.get(kind, 0.0)
                self._advance("jouleserve_attributed_energy_joules", part, device=kind, share=share)
        for kind, residual in books.residual_joules().items():
            self._metrics.set("jouleserve_energy_residual_joules", residual, device=kind)

    def _advance(self, name: str, total: float, **labels: str) -> None:
        """Advance a counter to a running total. Its `source` may change on the way: what is new is
        counted under the present one."""
        key = (name, *(value for label, value in labels.items() if label != "source"))
        self._metrics.inc(name, total - self._booked.get(key, 0.0), **labels)
        self._booked[key] = total

    def decision(self, decision: Decision, requested: int | None) -> None:
        """One replica decision."""
        m = self._metrics
        m.inc(
            "jouleserve_decisions", reason=decision.reason.value, moved=str(decision.moves).lower()
        )
        m.set("jouleserve_requested_max_num_active_seqs", requested)
        predicted = decision.predicted_chosen
        m.set(
            "jouleserve_predicted_joules_per_request",
            predicted.joules_per_request if predicted else None,
        )

    def limit(self, state: LimitState, *, inert: bool | None) -> None:
        """The power limit after a tick; nothing where nobody is to set it."""
        m = self._metrics
        if state.nobodys:
            return
        m.set("jouleserve_requested_power_limit_watts", state.asked_watts)
        m.set("jouleserve_power_limit_cap_watts", state.max_watts if state.capped else None)
        m.set("jouleserve_power_limit_available", float(state.available))
        m.set("jouleserve_power_limit_held", float(state.held))
        m.set("jouleserve_power_limit_drift", float(state.drift_watts is not None))
        m.set("jouleserve_power_limit_inert", None if inert is None else float(inert))

    def model(
        self,
        state: CorrectionState,
        correction: Correction | None,
        assessment: Assessment | None,
        residual_ratio: float | None,
    ) -> None:
        """What live steps say about the model; `residual_ratio`: of the last tick's step time."""
        m = self._metrics
        m.set("jouleserve_model_residual_ratio", residual_ratio)
        in_force = correction or Correction()
        for quantity, bias, ratio in (
            ("step_time", state.step_time, in_force.step_time_ratio),
            ("step_energy", state.energy, in_force.energy_ratio),
        ):
            bias_ratio = bias.ratio if bias.known else None
            drift_ratio = bias.drift_ratio if bias.known else None
            m.set("jouleserve_model_bias_ratio", bias_ratio, quantity=quantity)
            m.set("jouleserve_model_correction_ratio", ratio, quantity=quantity)
            m.set("jouleserve_model_drift_ratio", drift_ratio, quantity=quantity)
            for fate, count in (("gated", bias.gated), ("ignored", bias.ignored)):
                self._advance(
                    "jouleserve_model_outlier_windows", count, quantity=quantity, fate=fate
                )
        for one in Verdict:
            present = None if assessment is None else float(assessment.verdict is one)
            m.set("jouleserve_model_verdict", present, verdict=one.value)

    def failed(self, stage: str) -> None:
        """A control tick failed at `stage`."""
        self._metrics.inc("jouleserve_control_errors", stage=stage)


def ended_row(
    request: FinishedRequest, energy: RequestEnergy, replica: str, slo: SLO
) -> dict[str, Any]:
    """One answered request for the page. `joules`: None = unavailable."""
    return {
        "time_utc_s": time.time(),
        "request": request.request_id,
        "replica": replica,
        "prompt_tokens": request.prompt_tokens,
        "output_tokens": request.output_tokens,
        "ttft_s": request.ttft_s,
        "tpot_s": request.tpot_s,
        "e2e_s": request.e2e_s,
        "joules": energy.joules,
        "verdict": verdict(request, slo),
    }


def verdict(request: FinishedRequest, slo: SLO) -> str:
    """met, missed_ttft, missed_tpot, missed_both; failed for a request that was not answered."""
    if request.outcome in {"abort", "error"}:
        return "failed"
    late_first = request.ttft_s > slo.ttft_s
    late_rest = request.tpot_s is not None and request.tpot_s > slo.tpot_s
    if late_first and late_rest:
        return "missed_both"
    if late_first:
        return "missed_ttft"
    return "missed_tpot" if late_rest else "met"
