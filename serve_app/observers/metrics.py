"""Every metric of JouleServe, defined once; recorded once, exported twice.

A replica records into its own `prometheus_client` registry (which the ledger merges into one scrape
for the whole application) and, under Ray, into Ray's metrics pipeline, where each name appears with
Ray's prefix `ray_`. `docs/metrics.md` is generated from `METRICS`.

A missing value is an absent series, never 0.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_BUCKETS_S = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
JOULE_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)
BASE_LABELS = ("application", "deployment", "replica", "model")


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricSpec:
    """One metric. `labels` come after the base labels. Counters are written without `_total`: both
    exporters add it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    in_ray: bool = True


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec(
        name="jouleserve_energy_joules",
        kind="counter",
        help="Energy metered for this replica, by device kind and source.",
        labels=("device", "source"),
    ),
    MetricSpec(
        name="jouleserve_attributed_energy_joules",
        kind="counter",
        help="Metered energy by share: requests (settled), idle, unattributed.",
        labels=("device", "share"),
    ),
    MetricSpec(
        name="jouleserve_phase_energy_joules",
        kind="counter",
        help="Energy of settled requests by phase: prefill, decode.",
        labels=("phase",),
    ),
    MetricSpec(
        name="jouleserve_energy_residual_joules",
        kind="gauge",
        help="Metered minus the sum of all shares; not zero = a defect in the books.",
        labels=("device",),
    ),
    MetricSpec(
        name="jouleserve_power_watts",
        kind="gauge",
        help="Mean draw over the last meter window, by device kind.",
        labels=("device",),
    ),
    MetricSpec(
        name="jouleserve_power_limit_watts",
        kind="gauge",
        help="Enforced GPU power limit, read back; absent where there is none.",
    ),
    MetricSpec(
        name="jouleserve_requested_power_limit_watts",
        kind="gauge",
        help="GPU power limit that was last asked for; absent where none of ours shall hold.",
    ),
    MetricSpec(
        name="jouleserve_power_limit_cap_watts",
        kind="gauge",
        help="What no GPU may draw more than (a power budget, or a limit that was found); absent: "
        "the device's default.",
    ),
    MetricSpec(
        name="jouleserve_power_limit_available",
        kind="gauge",
        help="1 if power limits can be set, 0 if not (the reason stands in /energy); absent where "
        "nobody is to set them.",
    ),
    MetricSpec(
        name="jouleserve_power_limit_held",
        kind="gauge",
        help="1 while this replica has a say over its GPUs' limits (a lease of the power agent).",
    ),
    MetricSpec(
        name="jouleserve_power_limit_drift",
        kind="gauge",
        help="1 while another program has set the limit that this replica had set.",
    ),
    MetricSpec(
        name="jouleserve_power_limit_inert",
        kind="gauge",
        help="1 if the GPUs draw less than 0.97 of the limit, which then does nothing.",
    ),
    MetricSpec(
        name="jouleserve_meter_age_seconds",
        kind="gauge",
        help="Time since the last good meter reading.",
    ),
    MetricSpec(
        name="jouleserve_meter_available",
        kind="gauge",
        help="1 if a device kind is metered; 0 for a kind or meter back-end that is unavailable.",
        labels=("meter",),
    ),
    MetricSpec(
        name="jouleserve_meter_anomalies",
        kind="counter",
        help="Sensor values that a plain difference would get wrong, by kind: wrap, reset, "
        "backward, zero, jump, stall, gap, late, clock, disagreement. Counted, never booked.",
        labels=("sensor", "kind"),
    ),
    MetricSpec(
        name="jouleserve_meter_cross_check_ratio",
        kind="gauge",
        help="Integrated power over counter energy of a sensor that has both; 1 = they agree.",
        labels=("sensor",),
    ),
    MetricSpec(
        name="jouleserve_max_num_active_seqs",
        kind="gauge",
        help="Cap on running requests in force, as the engine reports it.",
    ),
    MetricSpec(
        name="jouleserve_requested_max_num_active_seqs",
        kind="gauge",
        help="Cap on running requests last asked for.",
    ),
    MetricSpec(
        name="jouleserve_num_requests_running", kind="gauge", help="Requests in the running batch."
    ),
    MetricSpec(
        name="jouleserve_num_requests_waiting", kind="gauge", help="Requests waiting in the engine."
    ),
    MetricSpec(
        name="jouleserve_arrival_rate_per_second",
        kind="gauge",
        help="Requests that reached this replica's engine, per second, over 30 s.",
    ),
    MetricSpec(
        name="jouleserve_requests",
        kind="counter",
        help="Requests by outcome: stop, length, abort, error, refused.",
        labels=("outcome",),
    ),
    MetricSpec(
        name="jouleserve_slo_requests",
        kind="counter",
        help="Requests by SLO verdict: met, missed_ttft, missed_tpot, missed_both, failed.",
        labels=("verdict",),
    ),
    MetricSpec(
        name="jouleserve_slo_ttft_seconds",
        kind="gauge",
        help="Target in force for the time to first token.",
    ),
    MetricSpec(
        name="jouleserve_slo_tpot_seconds",
        kind="gauge",
        help="Target in force for the time per output token.",
    ),
    MetricSpec(
        name="jouleserve_slo_objective_ratio",
        kind="gauge",
        help="Share of the requests that must meet both targets.",
    ),
    MetricSpec(
        name="jouleserve_fleet_budget_watts",
        kind="gauge",
        help="What the limits of all GPUs of the deployment may sum up to; absent: anything.",
    ),
    MetricSpec(
        name="jouleserve_mode",
        kind="gauge",
        help="1 for the mode in force, 0 for the others: active, approve, advisory, off.",
        labels=("mode",),
    ),
    MetricSpec(
        name="jouleserve_prompt_tokens", kind="counter", help="Prompt tokens of answered requests."
    ),
    MetricSpec(name="jouleserve_output_tokens", kind="counter", help="Output tokens generated."),
    MetricSpec(
        name="jouleserve_time_to_first_token_seconds",
        kind="histogram",
        help="TTFT, measured in the engine: arrival at the replica to first token.",
        buckets=LATENCY_BUCKETS_S,
    ),
    MetricSpec(
        name="jouleserve_time_per_output_token_seconds",
        kind="histogram",
        help="TPOT per request: (e2e - TTFT) / (output tokens - 1).",
        buckets=LATENCY_BUCKETS_S,
    ),
    MetricSpec(
        name="jouleserve_inter_token_latency_seconds",
        kind="histogram",
        help="ITL: gap between two tokens of one request. Not in Ray's pipeline, where vLLM's own "
        "says the same: a sample per token would cost more than all other metrics.",
        buckets=LATENCY_BUCKETS_S,
        in_ray=False,
    ),
    MetricSpec(
        name="jouleserve_request_energy_joules",
        kind="histogram",
        help="Energy attributed to one request.",
        buckets=JOULE_BUCKETS,
    ),
    MetricSpec(
        name="jouleserve_decisions",
        kind="counter",
        help="Replica decisions by reason and whether they moved a knob.",
        labels=("reason", "moved"),
    ),
    MetricSpec(
        name="jouleserve_control_errors",
        kind="counter",
        help="Control ticks that failed, by stage: meter, model, policy, actuate, report; "
        "config: a live update that was refused.",
        labels=("stage",),
    ),
    MetricSpec(
        name="jouleserve_predicted_joules_per_request",
        kind="gauge",
        help="J/request that the model predicts for the chosen point and the present load.",
    ),
    MetricSpec(
        name="jouleserve_model_residual_ratio",
        kind="gauge",
        help="(measured - predicted) / predicted mean step time over the last window with work.",
    ),
    MetricSpec(
        name="jouleserve_model_bias_ratio",
        kind="gauge",
        help="Measured over modelled, as learned from live steps: step_time, step_energy. Energy "
        "only where a sensor measures it.",
        labels=("quantity",),
    ),
    MetricSpec(
        name="jouleserve_model_correction_ratio",
        kind="gauge",
        help="What the model is multiplied by in decisions: the bias, within "
        "energy.model_correction.max_ratio.",
        labels=("quantity",),
    ),
    MetricSpec(
        name="jouleserve_model_drift_ratio",
        kind="gauge",
        help="Drift detector of the corrected model over its alarm level; 1 = alarm.",
        labels=("quantity",),
    ),
    MetricSpec(
        name="jouleserve_model_verdict",
        kind="gauge",
        help="1 for the present verdict on the model, 0 for the others: fits, corrected, "
        "drifting, refit_suggested.",
        labels=("verdict",),
    ),
    MetricSpec(
        name="jouleserve_model_outlier_windows",
        kind="counter",
        help="Windows of steps that the correction did not learn from, by fate: gated (too far "
        "off), ignored (no positive number).",
        labels=("quantity", "fate"),
    ),
    MetricSpec(
        name="jouleserve_request_log_rows",
        kind="counter",
        help="Rows of the request log by fate: written; dropped (the disk took none for long).",
        labels=("fate",),
    ),
    MetricSpec(
        name="jouleserve_request_log_errors",
        kind="counter",
        help="Attempts to write the request log that failed; its rows wait for the next.",
    ),
)


class MetricSet:
    """All metrics of one replica. `labels` gives the base labels; `mirror_to_ray` also records
    into Ray's pipeline (needs a running Ray worker)."""

    def __init__(self, labels: dict[str, str], *, mirror_to_ray: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._base = {name: labels[name] for name in BASE_LABELS}
        self._specs = {spec.name: spec for spec in METRICS}
        self._own = {spec.name: _own_metric(spec, self.registry) for spec in METRICS}
        mirrored = [spec for spec in METRICS if spec.in_ray] if mirror_to_ray else []
        self._ray = {spec.name: _ray_metric(spec, self._base) for spec in mirrored}

    def inc(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter. Negative or NaN amounts are dropped: a counter never goes back."""
        if not amount > 0.0 or math.isinf(amount):
            return
        self._own[name].labels(**self._base, **labels).inc(amount)
        if name in self._ray:
            self._ray[name].inc(amount, labels or None)

    def set(self, name: str, value: float | None, **labels: str) -> None:
        """Set a gauge; None removes the series."""
        if value is None or math.isnan(value):
            self._remove(name, labels)
            return
        self._own[name].labels(**self._base, **labels).set(value)
        if name in self._ray:
            self._ray[name].set(value, labels or None)

    def _remove(self, name: str, labels: dict[str, str]) -> None:
        values = [*self._base.values(), *(labels[key] for key in self._specs[name].labels)]
        with contextlib.suppress(KeyError):
            self._own[name].remove(*values)

    def observe(self, name: str, value: float | None, **labels: str) -> None:
        """Observe into a histogram; None is no sample."""
        if value is None or math.isnan(value):
            return
        self._own[name].labels(**self._base, **labels).observe(value)
        if name in self._ray:
            self._ray[name].observe(value, labels or None)

    def observe_all(self, name: str, values: Iterable[float]) -> None:
        """Observe many values into a histogram that is not mirrored to Ray."""
        own = self._own[name].labels(**self._base)
        for value in values:
            own.observe(value)


def _own_metric(spec: MetricSpec, registry: CollectorRegistry) -> Any:
    labels = (*BASE_LABELS, *spec.labels)
    if spec.kind == "counter":
        return Counter(spec.name, spec.help, labels, registry=registry)
    if spec.kind == "gauge":
        return Gauge(spec.name, spec.help, labels, registry=registry)
    return Histogram(spec.name, spec.help, labels, registry=registry, buckets=spec.buckets)


def _ray_metric(spec: MetricSpec, base: dict[str, str]) -> Any:
    from ray.util import metrics

    keys = (*BASE_LABELS, *spec.labels)
    if spec.kind == "counter":
        metric: Any = metrics.Counter(spec.name, spec.help, tag_keys=keys)
    elif spec.kind == "gauge":
        metric = metrics.Gauge(spec.name, spec.help, tag_keys=keys)
    else:
        metric = metrics.Histogram(
            spec.name, spec.help, boundaries=list(spec.buckets), tag_keys=keys
        )
    metric.set_default_tags(base)
    return metric
