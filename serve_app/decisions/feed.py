"""From whoever decides to the ledger: which decisions are worth a record, and their way there.

A decision is recorded when it differs from the last recorded one, and once a minute otherwise. The
controller must not wait for anything, so the fleet's records leave it from a thread of their own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from policies.core.control import decision_to_dict
from policies.core.types import (
    ControlSettings,
    ControlState,
    Decision,
    Knob,
    Mode,
    Observation,
    OperatingPoint,
)
from policies.model.fitted import FittedModel
from policies.model.online import Correction, fingerprint
from serve_app.deciders import Serving
from serve_app.decisions.record import Record, lines_of
from serve_app.decisions.settings import DecisionLogSettings
from serve_app.settings import EnergySettings

log = logging.getLogger("ray.serve")

AGAIN_S = 60.0
_WAITING = 64  # records
_SEND_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a decision was made from."""

    observation: Observation
    state: ControlState
    settings: ControlSettings
    free: frozenset[Knob]
    correction: Correction | None
    serving: Serving


class Changes:
    """Says which of one owner's decisions are new."""

    def __init__(self) -> None:
        self._last: tuple[Any, ...] | None = None
        self._last_s = 0.0

    def is_new(self, decision: Decision, mode: Mode = Mode.ACTIVE) -> bool:
        """Whether this one is to be recorded."""
        said = decision.notes[0].partition(" ")[0] if decision.notes else ""
        key = (_knobs(decision.chosen), _knobs(decision.proposed), decision.reason, said, mode)
        since_s = decision.time_s - self._last_s
        if key == self._last and 0.0 <= since_s < AGAIN_S:
            return False
        self._last, self._last_s = key, decision.time_s
        return True


def _knobs(point: OperatingPoint) -> tuple[Any, ...]:
    """Without what the router is told, which follows every lesson of the margins."""
    return point.num_replicas, point.max_num_active_seqs, point.power_limit_watts


def profiles_of(model: FittedModel | None) -> dict[str, dict[str, Any]]:
    """The profile by its fingerprint."""
    return {} if model is None else {fingerprint(model): model.to_dict()}


def record_of(
    decision: Decision,
    asked: Asked,
    energy: EnergySettings,
    model: FittedModel | None,
    owner: tuple[str, str | None],
) -> Record:
    """The record of a decision that is made now. Trusts its parts: nothing is validated."""
    deployment, replica = owner
    now_ns = time.time_ns()  # one process decides about all fleets, more than once a millisecond
    return Record.model_construct(
        id=f"{replica or 'fleet'}-{now_ns:x}",
        time_utc_s=1e-9 * now_ns,
        deployment=deployment,
        replica=replica,
        policy=energy.policy,
        profile=None if model is None else fingerprint(model),
        correction=asked.correction,
        serving=asked.serving,
        observation=asked.observation,
        state=asked.state,
        settings=asked.settings,
        free=tuple(sorted(asked.free)),
        decision=decision_to_dict(decision),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetRow:
    """A deployment as the fleet tick last saw it. `decisions`: counted by (reason, moved) since the
    policy was made; `errors`: ticks that failed; `decision_s`: of the last one."""

    application: str
    deployment: str
    replicas: int
    requested_replicas: int
    min_replicas: int
    max_replicas: int
    decisions: Mapping[tuple[str, bool], int] = field(default_factory=dict)
    decision_s: float | None = None
    errors: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetNews:
    """What the ledger is told after a tick."""

    row: FleetRow
    record: Record | None = None
    model: FittedModel | None = None
    log: DecisionLogSettings = field(default_factory=DecisionLogSettings)


Send = Callable[[FleetRow, list[str], dict[str, Any], DecisionLogSettings], None]


class FleetFeed:
    """Hands news to `send` from a thread of its own; `put` never blocks and never raises."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._rows: dict[str, FleetNews] = {}
        self._records: deque[FleetNews] = deque(maxlen=_WAITING)
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._told = False
        threading.Thread(target=self._run, name="jouleserve-fleet-feed", daemon=True).start()

    def put(self, news: FleetNews) -> None:
        """Take news; of several rows of a deployment the last one is sent."""
        with self._lock:
            self._rows[news.row.deployment] = news
            if news.record is not None:
                self._records.append(news)
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            with self._lock:
                rows, records = list(self._rows.values()), list(self._records)
                self._rows.clear()
                self._records.clear()
            for news in rows:
                mine = [one for one in records if one.row.deployment == news.row.deployment]
                try:
                    self._hand_over(news, mine)
                    self._told = False
                except Exception:
                    if not self._told:
                        self._told = True
                        log.warning("the ledger does not hear of decisions", exc_info=True)

    def _hand_over(self, news: FleetNews, records: list[FleetNews]) -> None:
        lines = lines_of(one.record for one in records if one.record is not None)
        profiles = profiles_of(news.model) if lines else {}
        self._send(news.row, lines, profiles, news.log)


_FEEDS: dict[str, FleetFeed] = {}


def feed_of(application: str) -> FleetFeed | None:
    """The feed of an application in this process; None where there is no Ray to send with."""
    import ray

    if not ray.is_initialized():
        return None
    if application not in _FEEDS:
        _FEEDS[application] = FleetFeed(_to_ledger(application))
    return _FEEDS[application]


def _to_ledger(application: str) -> Send:
    import ray

    from serve_app.ledger import ledger_handle

    ledger: Any = None

    def send(row: FleetRow, lines: list[str], profiles: Any, settings: DecisionLogSettings) -> None:
        nonlocal ledger
        try:
            ledger = ledger or ledger_handle(application)
            ray.get(ledger.fleet.remote(row, lines, profiles, settings), timeout=_SEND_TIMEOUT_S)
        except Exception:
            ledger = None
            raise

    return send
