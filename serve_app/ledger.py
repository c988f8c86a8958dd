"""One actor per application: what all its replicas measured, for the scrape URL, the API and the
page.

Replicas push about once a second. Losing the ledger loses no request and no control: it is made
again by the next push, and every replica pushes its totals, not differences. A replica that has
stopped pushing keeps its counters (its joules were spent) and loses its gauges; what its open
requests had been given becomes unattributed.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from dataclasses import asdict
from typing import Any

import ray
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

from serve_app.decisions.approval import Approved, NotApproved
from serve_app.decisions.book import Account, DecisionBook, Key
from serve_app.decisions.feed import FleetRow
from serve_app.decisions.settings import DecisionLogSettings
from serve_app.decisions.words import told
from serve_app.history import History, Sample
from serve_app.observers.fleet_metrics import fleet_families
from serve_app.push import Family, Push, account_of, sample_of

_GONE_AFTER_S = 10.0
_KEPT_REQUESTS = 200
_KEPT_REPLICAS = 512
_KEPT_PROFILES = 64
_END_AFTER_S = 900.0  # without a push: the application is gone, so is its ledger


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
        self._gates: OrderedDict[str, tuple[list[Family], float]] = OrderedDict()

    def gate(self, replica: str, families: list[Family], now_s: float) -> None:
        """Take the latest metrics of the gate in one process."""
        self._gates[replica] = (families, now_s)
        self._gates.move_to_end(replica)
        while len(self._gates) > _KEPT_REPLICAS:
            self._gates.popitem(last=False)

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
        rows = self._book.rows(last, lambda key: self._account(key, now_s))
        for row in rows:
            key = f"{row['deployment']}#{row['replica']}"
            if row["replica"] is not None and not self._alive(key, now_s):
                row["in_force"] = False  # whoever it was for is gone
        return rows

    def approve(self, decision: str, by: str | None) -> dict[str, Any]:
        """Let a waiting decision be acted on: `{"approved": its point}`, or `{"error", "status"}`
        where it cannot be."""
        try:
            point = self._book.approve(decision, by)
        except NotApproved as error:
            return {"error": str(error), "status": error.status}
        return {"approved": asdict(point)}

    def approved(self, deployment: str, replica: str) -> Approved:
        """What operators have approved for a replica and its deployment."""
        return self._book.approvals.of(deployment, replica)

    def records(self, last: int) -> dict[str, Any]:
        """The last decisions with all that they were made from, and the profiles."""
        return self._book.records(last)

    def page(self, last: int, since_utc_s: float, now_s: float) -> dict[str, Any]:
        """What the page shows: the books and replicas, the hour as far as it is newer than
        `since_utc_s`, decisions, requests."""
        fleet = [asdict(row) for row in self.fleet_rows(now_s)]
        for row in fleet:
            del row["decisions"]
        return {
            "time_utc_s": time.time(),
            "energy": self.energy(now_s),
            "fleet": fleet,
            "history": self._history.rows(since_utc_s),
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
        asked = [row for row in self.fleet_rows(now_s) if row.deployment == deployment]
        account = self._account((deployment, None), now_s)
        return sample_of(alive, account, asked[0] if asked else None)

    def _account(self, key: Key, now_s: float) -> Account | None:
        """Running totals of a replica, or of all replicas that a deployment has had."""
        deployment, replica = key
        return account_of(
            [
                push
                for push in self._pushes.values()
                if push.deployment == deployment and replica in {None, push.replica}
            ],
            now_s,
        )

    def last_push_s(self) -> float | None:
        """When anybody has told anything."""
        others = [*self._fleet.values(), *self._gates.values()]
        return max([*self._seen_s.values(), *(seen_s for _, seen_s in others)], default=None)

    def _alive(self, key: str, now_s: float) -> bool:
        return now_s - self._seen_s.get(key, -math.inf) <= _GONE_AFTER_S

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
        told = [(p.families, self._alive(key, now_s)) for key, p in self._pushes.items()]
        told += [(found, now_s - s <= _GONE_AFTER_S) for found, s in self._gates.values()]
        for families, alive in told:
            for name, documentation, kind, samples in families:
                if not alive and kind == "gauge":
                    continue
                family = merged.setdefault(name, Metric(name, documentation, kind))
                for sample_name, labels, value in samples:
                    family.add_sample(sample_name, labels, value)
        fleet = fleet_families(self.fleet_rows(now_s))
        registry = CollectorRegistry()
        registry.register(_Families([*merged.values(), *fleet]))
        return bytes(generate_latest(registry))


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

    def push(self, push: Push) -> Approved:
        self._state.push(push, time.monotonic())
        return self._state.approved(push.deployment, push.replica)

    def approve(self, decision: str, by: str | None) -> dict[str, Any]:
        return self._state.approve(decision, by)

    def gate(self, replica: str, families: list[Family]) -> None:
        self._state.gate(replica, families, time.monotonic())

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

    def page(self, last: int, since_utc_s: float) -> dict[str, Any]:
        return self._state.page(last, since_utc_s, time.monotonic())

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
