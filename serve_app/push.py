"""What one replica tells the ledger, and what follows from several of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from serve_app.decisions.book import Account
from serve_app.decisions.feed import FleetRow
from serve_app.history import Sample
from serve_app.meters import DeviceReading

Family = tuple[str, str, str, list[tuple[str, dict[str, str], float]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Push:
    """What one replica says: its identity, its metric families, its books (joules, all devices
    summed; None = unavailable), its knobs, its power limit (`ReplicaLimit.row`), what each kind of
    device used (`metered`), the state of each of its devices (`device_rows`), why its last
    `user_config` is not in force, what it knows about its profile (`learned`, for the next
    replica), the verdict on it with its reason, and the `requests` that ended since the last."""

    deployment: str
    replica: str
    model: str
    families: list[Family]
    books: dict[str, float | None]
    knobs: dict[str, float | None]
    limit: dict[str, Any] | None = None
    metered: dict[str, float] = field(default_factory=dict)
    devices: list[dict[str, Any]] = field(default_factory=list)
    refused_user_config: str | None = None
    learned: dict[str, Any] | None = None
    model_verdict: str | None = None
    model_reason: str | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)


def device_rows(readings: Iterable[DeviceReading]) -> list[dict[str, Any]]:
    """Each metered device as the API shows it. `joules`: since the replica's meter opened, up to
    the last good reading; None = never read. `reason`: why it cannot be read now, else None."""
    return [
        {
            "id": reading.device.id,
            "kind": reading.device.kind.value,
            "name": reading.device.name,
            "joules": reading.last_known_joules,
            "source": reading.source.value,
            "reason": reading.reason,
        }
        for reading in readings
    ]


def families_of(registry: CollectorRegistry) -> list[Family]:
    """A registry's content as plain data that travels between processes."""
    return [
        (
            family.name,
            family.documentation,
            family.type,
            [
                (s.name, dict(s.labels), s.value)
                for s in family.samples
                if not s.name.endswith("_created")
            ],
        )
        for family in registry.collect()
    ]


def samples(push: Push, name: str) -> list[tuple[dict[str, str], float]]:
    """The samples of one counter or gauge of a replica."""
    return [
        (labels, value)
        for family, _, _, found in push.families
        if family == name
        for sample, labels, value in found
        if sample in {name, f"{name}_total"}
    ]


def account_of(pushes: Sequence[Push], now_s: float) -> Account | None:
    """The running totals of replicas together; None without one."""
    if not pushes:
        return None
    joules = [sum(push.metered.values()) for push in pushes if push.metered]
    verdicts = [one for push in pushes for one in samples(push, "jouleserve_slo_requests")]
    return Account(
        time_s=now_s,
        joules=sum(joules) if joules else None,
        requests=sum(value for push in pushes for _, value in samples(push, "jouleserve_requests")),
        judged=sum(value for _, value in verdicts),
        met=sum(value for labels, value in verdicts if labels["verdict"] == "met"),
    )


def sample_of(alive: Sequence[Push], account: Account | None, fleet: FleetRow | None) -> Sample:
    """A deployment as it is now: the replicas that report, its totals, its fleet tick."""
    draw: dict[str, float] = {}
    for push in alive:
        for labels, watts in samples(push, "jouleserve_power_watts"):
            draw[labels["device"]] = draw.get(labels["device"], 0.0) + watts
    return Sample(
        time_utc_s=time.time(),
        joules=account.joules if account else None,
        requests=account.requests if account else 0.0,
        judged=account.judged if account else 0.0,
        met=account.met if account else 0.0,
        replicas=len(alive),
        requested_replicas=fleet.requested_replicas if fleet else None,
        running=sum(push.knobs.get("num_running") or 0.0 for push in alive),
        waiting=sum(push.knobs.get("num_waiting") or 0.0 for push in alive),
        batch_cap=_mean(push.knobs.get("max_num_active_seqs") for push in alive),
        limit_watts=_mean(
            push.limit.get("enforced_watts") for push in alive if push.limit is not None
        ),
        draw_watts=draw,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
