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
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

from serve_app.decisions.book import Account, DecisionBook, Key
from serve_app.decisions.feed import FleetRow
from serve_app.decisions.settings import DecisionLogSettings
from serve_app.decisions.words import told
from serve_app.history import History, Sample
from serve_app.meters import DeviceReading
from serve_app.observers.fleet_metrics import fleet_families

_GONE_AFTER_S = 10.0
_KEPT_REQUESTS = 200
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


class LedgerState:
    """The ledger without Ray; `now_s` is any monotonic clock."""

    def __init__(self, application: str = "application") -> None:
        self._pushes: OrderedDict[str, Push] = OrderedDict()
        self._seen_s: dict[str, float] = {}
        self._fleet: dict[str, tuple[FleetRow, float]] = {}
        self._book = DecisionBook(application)
        self._history = History()
        self._requests: deque[dict[str, Any]] = deque(maxlen=_KEPT_REQUESTS)
        self._learned: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()

    def push(self, push: Push, now_s: float) -> None:
        """Take a replica's latest totals."""
        key = f"{push.deployment}#{push.replica}"
        self._pushes[key] = push
        self._seen_s[key] = now_s
        while len(self._pushes) > _KEPT_REPLICAS:
            oldest = min(self._seen_s, key=lambda k: self._seen_s[k])
            del self._pushes[oldest], self._seen_s[oldest]
        self._requests.extend(push.requests)
        push.requests.clear()
        if self._history.due(push.deployment, now_s):
            self._history.add(push.deployment, self._sample(push.deployment, now_s), now_s)
        if push.learned is not None:
            about = (push.deployment, str(push.learned.get("profile")))
            self._learned[about] = push.learned
            self._learned.move_to_end(about)
            while len(self._learned) > _KEPT_PROFILES:
                self._learned.popitem(last=False)

    def learned(self, deployment: str, profile: str) -> dict[str, Any] | None:
        """What a replica of the deployment last knew about the profile (its fingerprint)."""
        return self._learned.get((deployment, profile))

    def fleet(self, row: FleetRow, now_s: float) -> None:
        """Take what the fleet tick of a deployment says."""
        self._fleet[row.deployment] = (row, now_s)

    def fleet_rows(self, now_s: float) -> list[FleetRow]:
        """Of the deployments whose fleet tick still runs."""
        rows = self._fleet.values()
        return [row for row, seen_s in rows if now_s - seen_s <= _GONE_AFTER_S]

    def decide(
        self,
        lines: list[str],
        profiles: dict[str, dict[str, Any]],
        settings: DecisionLogSettings,
        now_s: float,
    ) -> None:
        """Take decisions that were just made (`Record` as JSON) and the profiles in them."""
        self._book.take(lines, profiles, settings, lambda key: self._account(key, now_s))

    def decisions(self, last: int, now_s: float) -> list[dict[str, Any]]:
        """The last decisions, newest first, with what came of them."""
        return self._book.rows(last, lambda key: self._account(key, now_s))

    def records(self, last: int) -> dict[str, Any]:
        """The last decisions with all that they were made from, and the profiles."""
        return self._book.records(last)

    def page(self, last: int, now_s: float) -> dict[str, Any]:
        """What the page shows: the books and replicas, an hour, decisions, requests."""
        fleet = [asdict(row) for row in self.fleet_rows(now_s)]
        for row in fleet:
            del row["decisions"]
        return {
            "time_utc_s": time.time(),
            "energy": self.energy(now_s),
            "fleet": fleet,
            "history": self._history.rows(),
            "decisions": [told(row) for row in self.decisions(last, now_s)],
            "requests": list(self._requests)[::-1][:last],
        }

    def _sample(self, deployment: str, now_s: float) -> Sample:
        """A deployment as it is now."""
        alive = [
            push
            for key, push in self._pushes.items()
            if push.deployment == deployment and self._alive(key, now_s)
        ]
        account = self._account((deployment, None), now_s)
        asked = [row for row in self.fleet_rows(now_s) if row.deployment == deployment]
        draw: dict[str, float] = {}
        for push in alive:
            for labels, watts in _samples(push, "jouleserve_power_watts"):
                draw[labels["device"]] = draw.get(labels["device"], 0.0) + watts
        return Sample(
            time_utc_s=time.time(),
            joules=account.joules if account else None,
            requests=account.requests if account else 0.0,
            judged=account.judged if account else 0.0,
            met=account.met if account else 0.0,
            replicas=len(alive),
            requested_replicas=asked[0].requested_replicas if asked else None,
            running=sum(push.knobs.get("num_running") or 0.0 for push in alive),
            waiting=sum(push.knobs.get("num_waiting") or 0.0 for push in alive),
            batch_cap=_mean(push.knobs.get("max_num_active_seqs") for push in alive),
            limit_watts=_mean(
                push.limit.get("enforced_watts") for push in alive if push.limit is not None
            ),
            draw_watts=draw,
        )

    def _account(self, key: Key, now_s: float) -> Account | None:
        """Running totals of a replica, or of all replicas that a deployment has had."""
        deployment, replica = key
        mine = [
            push
            for push in self._pushes.values()
            if push.deployment == deployment and replica in {None, push.replica}
        ]
        if not mine:
            return None
        joules = [sum(push.metered.values()) for push in mine if push.metered]
        verdicts = [one for push in mine for one in _samples(push, "jouleserve_slo_requests")]
        return Account(
            time_s=now_s,
            joules=sum(joules) if joules else None,
            requests=sum(
                value for push in mine for _, value in _samples(push, "jouleserve_requests")
            ),
            judged=sum(value for _, value in verdicts),
            met=sum(value for labels, value in verdicts if labels["verdict"] == "met"),
        )

    def last_push_s(self) -> float | None:
        """When anybody has told anything."""
        told = [*self._seen_s.values(), *(seen_s for _, seen_s in self._fleet.values())]
        return max(told, default=None)

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
        fleet = fleet_families(self.fleet_rows(now_s))
        registry = CollectorRegistry()
        registry.register(_Families([*merged.values(), *fleet]))
        return bytes(generate_latest(registry))


def _samples(push: Push, name: str) -> list[tuple[dict[str, str], float]]:
    """The samples of one counter or gauge of a replica."""
    return [
        (labels, value)
        for family, _, _, samples in push.families
        if family == name
        for sample, labels, value in samples
        if sample in {name, f"{name}_total"}
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


class _Families:
    """A collector over ready families."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


class Ledger:
    """The actor around `LedgerState`."""

    def __init__(self, application: str = "application") -> None:
        self._state = LedgerState(application)
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

    def fleet(
        self,
        row: FleetRow,
        lines: list[str],
        profiles: dict[str, dict[str, Any]],
        settings: DecisionLogSettings,
    ) -> None:
        self._state.fleet(row, time.monotonic())
        self.decide(lines, profiles, settings)

    def decide(
        self,
        lines: list[str],
        profiles: dict[str, dict[str, Any]],
        settings: DecisionLogSettings,
    ) -> None:
        if lines:
            self._state.decide(lines, profiles, settings, time.monotonic())

    def page(self, last: int = 20) -> dict[str, Any]:
        return self._state.page(last, time.monotonic())

    def decisions(self, last: int = 50) -> list[dict[str, Any]]:
        return self._state.decisions(last, time.monotonic())

    def records(self, last: int = 50) -> dict[str, Any]:
        return self._state.records(last)

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
        .remote(application)
    )
