"""The metrics of whole deployments, as the fleet tick in Ray's controller last told the ledger."""

from __future__ import annotations

from serve_app.observers.metrics import MetricSpec

FLEET_LABELS = ("application", "deployment")

FLEET_METRICS: tuple[MetricSpec, ...] = (
    MetricSpec(
        name="jouleserve_replicas",
        kind="gauge",
        help="Running replicas.",
    ),
    MetricSpec(
        name="jouleserve_requested_replicas",
        kind="gauge",
        help="Replicas that were last asked for.",
    ),
    MetricSpec(
        name="jouleserve_min_replicas",
        kind="gauge",
        help="The fewest replicas that may be asked for.",
    ),
    MetricSpec(
        name="jouleserve_max_replicas",
        kind="gauge",
        help="The most replicas that may be asked for.",
    ),
    MetricSpec(
        name="jouleserve_fleet_decisions",
        kind="counter",
        help="Decisions of the fleet tick by reason and whether they move.",
        labels=("reason", "moved"),
    ),
    MetricSpec(
        name="jouleserve_fleet_decision_seconds",
        kind="gauge",
        help="How long the last decision took inside Ray's controller.",
    ),
    MetricSpec(
        name="jouleserve_fleet_errors",
        kind="counter",
        help="Ticks of the fleet policy that failed; the number of replicas was held.",
    ),
)
