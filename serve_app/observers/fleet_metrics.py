"""The metrics of whole deployments, as the fleet tick in Ray's controller last told the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import Metric

from serve_app.observers.metrics import MetricSpec

if TYPE_CHECKING:
    from serve_app.decisions.feed import FleetRow

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


def fleet_families(rows: Iterable[FleetRow]) -> list[Metric]:
    """The metrics of these deployments, one family each; none without a deployment."""
    rows = list(rows)
    families = []
    for spec in FLEET_METRICS if rows else ():
        family = Metric(spec.name, spec.help, spec.kind)
        for row in rows:
            labels = {"application": row.application, "deployment": row.deployment}
            for more, value in _values(spec.name, row):
                name = f"{spec.name}_total" if spec.kind == "counter" else spec.name
                family.add_sample(name, {**labels, **more}, value)
        families.append(family)
    return families


def _values(name: str, row: FleetRow) -> Iterator[tuple[dict[str, str], float]]:
    if name == "jouleserve_fleet_decisions":
        for (reason, moved), count in row.decisions.items():
            yield {"reason": reason, "moved": str(moved).lower()}, float(count)
        return
    value = {
        "jouleserve_replicas": row.replicas,
        "jouleserve_requested_replicas": row.requested_replicas,
        "jouleserve_min_replicas": row.min_replicas,
        "jouleserve_max_replicas": row.max_replicas,
        "jouleserve_fleet_decision_seconds": row.decision_s,
        "jouleserve_fleet_errors": row.errors,
    }[name]
    if value is not None:
        yield {}, float(value)
