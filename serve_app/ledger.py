"""One actor per application: what all its replicas measured, for the scrape URL, the API and the
page.

Replicas push about once a second. Losing the ledger loses no request and no control: it is made
again by the next push, and every replica pushes its totals, not differences. A replica that has
stopped pushing keeps its counters (its joules were spent) and loses its gauges; what its open
requests had been given becomes unattributed.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

from serve_app.meters import DeviceReading

_GONE_AFTER_S = 10.0
_KEPT_REPLICAS = 512
_KEPT_PROFILES = 64
_END_AFTER_S = 900.0  # without a push: the application is gone, so is its ledger

Family = tuple[str, str, str, list[tuple[str, dict[str, str], float]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Push:
    """What one replica says: its identity, its metric families, its books (joules, all devices
    summed; None = unavailable), its knobs, its power limit (`ReplicaLimit.row`), what each kind of
    device used (`metered`), the state of each of its devices (`device_rows`), why its last
    `user_config` is not in force, what it knows about its profile (`learned`, for the next
    replica), and the verdict on it with its reason."""

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


class LedgerState:
    """The ledger without Ray; `now_s` is any monotonic clock."""

    def __init__(self) -> None:
        self._pushes: OrderedDict[str, Push] = OrderedDict()
        self._seen_s: dict[str, float] = {}
        self._learned: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()

    def push(self, push: Push, now_s: float) -> None:
        """Take a replica's latest totals."""
        key = f"{push.deployment}#{push.replica}"
        self._pushes[key] = push
        self._seen_s[key] = now_s
        while len(self._pushes) > _KEPT_REPLICAS:
            oldest = min(self._seen_s, key=lambda k: self._seen_s[k])
            del self._pushes[oldest], self._seen_s[oldest]
        if push.learned is not None:
            about = (push.deployment, str(push.learned.get("profile")))
            self._learned[about] = push.learned
            self._learned.move_to_end(about)
            while len(self._learned) > _KEPT_PROFILES:
                self._learned.popitem(last=False)

    def learned(self, deployment: str, profile: str) -> dict[str, Any] | None:
        """What a replica of the deployment last knew about the profile (its fingerprint)."""
        return self._learned.get((deployment, profile))

    def last_push_s(self) -> float | None:
        return max(self._seen_s.values(), default=None)

    def _alive(self, key: str, now_s: float) -> bool:
        return now_s - self._seen_s[key] <= _GONE_AFTER_S

    def energy(self, now_s: float) -> dict[str, Any]:
        """The application's books and replicas: `meter_joules` = attributed + open + idle +
        unattributed - prepaid. A sum is None when no replica could measure it; a kind of device
        that nobody metered is absent from `meter_joules_by_kind`."""
        sums: dict[str, float | None] = dict.fromkeys(
            ("meter", "attributed", "open", "idle", "unattributed", "prepaid")
        )
        by_kind: dict[str, float] = {}
        for key, push in self._pushes.items():
            books = dict(push.books)
            for kind, joules in push.metered.items():
                by_kind[kind] = by_kind.get(kind, 0.0) + joules
            if not self._alive(key, now_s) and books.get("meter") is not None:
                # Its open requests will never be answered; what was prepaid was never metered.
                lost = (books["open"] or 0.0) - (books["prepaid"] or 0.0)
                books["unattributed"] = (books["unattributed"] or 0.0) + lost
                books["open"] = books["prepaid"] = 0.0
            for name, value in books.items():
                if value is not None:
                    sums[name] = (sums[name] or 0.0) + value
        alive = [push for key, push in self._pushes.items() if self._alive(key, now_s)]
        return {
            **{f"{name}_joules": value for name, value in sums.items()},
            "meter_joules_by_kind": by_kind,
            "num_replicas": len(alive),
            "replicas": [
                {
                    "deployment": p.deployment,
                    "replica": p.replica,
                    "model": p.model,
                    **p.knobs,
                    "power_limit": p.limit,
                    "devices": p.devices,
                    "refused_user_config": p.refused_user_config,
                    "model_verdict": p.model_verdict,
                    "model_reason": p.model_reason,
                }
                for p in alive
            ],
        }

    def exposition(self, now_s: float) -> bytes:
        """All replicas' metrics in Prometheus text format, one family each."""
        merged: dict[str, Metric] = {}
        for key, push in self._pushes.items():
            alive = self._alive(key, now_s)
            for name, documentation, kind, samples in push.families:
                if not alive and kind == "gauge":
                    continue
                family = merged.setdefault(name, Metric(name, documentation, kind))
                for sample_name, labels, value in samples:
                    family.add_sample(sample_name, labels, value)
        registry = CollectorRegistry()
        registry.register(_Families(list(merged.values())))
        return bytes(generate_latest(registry))


class _Families:
    """A collector over ready families."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


class Ledger:
    """The actor around `LedgerState`."""

    def __init__(self) -> None:
        self._state = LedgerState()
        self._born_s = time.monotonic()
        self._me = ray.get_runtime_context().current_actor
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """A detached actor outlives its application: end it when nobody has pushed for long."""
        while True:
            time.sleep(60.0)
            self._me.end_if_unused.remote()

    def push(self, push: Push) -> None:
        self._state.push(push, time.monotonic())

    def energy(self) -> dict[str, Any]:
        return self._state.energy(time.monotonic())

    def exposition(self) -> bytes:
        return self._state.exposition(time.monotonic())

    def learned(self, deployment: str, profile: str) -> dict[str, Any] | None:
        return self._state.learned(deployment, profile)

    def end_if_unused(self) -> None:
        last_s = self._state.last_push_s() or self._born_s
        if time.monotonic() - last_s > _END_AFTER_S:
            ray.actor.exit_actor()


def ledger_handle(application: str) -> Any:
    """The application's ledger actor, made on first use. Raises what Ray raises.

    "DEFAULT" keeps it out of the placement group of the replica that asks first: there it would
    die with that replica, and with it the joules of all replicas that are gone.
    """
    return (
        ray.remote(Ledger)
        .options(
            name=f"jouleserve-ledger:{application}",
            namespace="serve",
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            scheduling_strategy="DEFAULT",
            max_restarts=-1,
        )
        .remote()
    )
