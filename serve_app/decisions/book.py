"""The last decisions of an application with what came of them, as its ledger keeps them."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from policies.core.errors import ConfigError
from policies.core.types import OperatingPoint
from serve_app.decisions.approval import Approvals
from serve_app.decisions.log import DecisionLog, approval_line, outcome_line
from serve_app.decisions.record import Record, alternatives_of, read_record, row_of
from serve_app.decisions.settings import DecisionLogSettings
from serve_app.settings import decision_log_folder

log = logging.getLogger("ray.serve")

_KEPT = 512
_KEPT_PROFILES = 16
_KEPT_OWNERS = 2048  # replicas come and go
Key = tuple[str, str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """Running totals of one owner: a replica, or all of its deployment. `joules`: None = not
    metered; `judged`: requests that had a verdict on the SLO, `met` of them held it."""

    time_s: float
    joules: float | None
    requests: float
    judged: float
    met: float


Accounts = Callable[[Key], Account | None]


def outcome(before: Account | None, after: Account | None) -> dict[str, Any] | None:
    """What happened between two accounts; None where one is missing."""
    if before is None or after is None or after.requests < before.requests:
        return None
    requests, judged = after.requests - before.requests, after.judged - before.judged
    joules = None
    if before.joules is not None and after.joules is not None:
        joules = after.joules - before.joules
    return {
        "for_s": after.time_s - before.time_s,
        "joules": joules,
        "requests": requests,
        "joules_per_request": joules / requests if joules is not None and requests else None,
        "attainment_ratio": (after.met - before.met) / judged if judged else None,
    }


class DecisionBook:
    """Takes lines from whoever decides. What cannot be read is dropped and counted in `refused`."""

    def __init__(self, application: str = "application") -> None:
        self.profiles: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.refused = 0
        self._application = application
        self._records: deque[Record] = deque(maxlen=_KEPT)
        self._outcomes: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._alternatives: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()
        self._open: OrderedDict[Key, tuple[str, Account | None]] = OrderedDict()
        self.approvals = Approvals()
        self._log: DecisionLog | None = None
        self._log_settings: DecisionLogSettings | None = None

    def take(
        self,
        lines: list[str],
        profiles: Mapping[str, dict[str, Any]],
        settings: DecisionLogSettings,
        accounts: Accounts,
    ) -> None:
        """Decisions that were just made, with the profiles that they refer to."""
        self._open_log(settings)
        for fingerprint, data in profiles.items():
            self.profiles[fingerprint] = data
            self.profiles.move_to_end(fingerprint)
            _keep(self.profiles, _KEPT_PROFILES)
            if self._log is not None:
                self._log.profile(fingerprint, data)
        for line in lines:
            try:
                record = read_record(line)
            except ConfigError as error:
                self.refused += 1
                log.warning("a decision cannot be read: %s", error)
                continue
            self._add(record, line, accounts)

    def _add(self, record: Record, line: str, accounts: Accounts) -> None:
        self.approvals.seen(record)
        now = accounts(record.key)
        if record.key in self._open:
            before, then = self._open[record.key]
            came = outcome(then, now)
            if came is not None:
                self._outcomes[before] = came
                _keep(self._outcomes, _KEPT)
                if self._log is not None:
                    self._log.line(outcome_line(before, came))
        self._open[record.key] = (record.id, now)
        self._open.move_to_end(record.key)
        _keep(self._open, _KEPT_OWNERS)
        self._records.append(record)
        if self._log is not None:
            self._log.line(line)

    def _open_log(self, settings: DecisionLogSettings) -> None:
        if settings == self._log_settings:
            return
        self._log_settings = settings
        if self._log is not None:
            self._log.close()
            self._log = None
        if not settings.enabled:
            return
        folder = decision_log_folder(settings.folder)
        try:
            self._log = DecisionLog(folder, self._application, settings.max_bytes)
        except OSError:
            log.exception("no decision log in %s", folder)

    def find(self, decision: str) -> Record | None:
        """A kept record by its id."""
        return next((one for one in self._records if one.id == decision), None)

    def approve(self, decision: str, by: str | None) -> OperatingPoint:
        """An operator's yes, written down with the name of its key. Raises NotApproved."""
        now_utc_s = time.time()
        point = self.approvals.approve(self.find(decision), now_utc_s, by)
        if self._log is not None:
            self._log.line(approval_line(decision, by, now_utc_s))
        return point

    def rows(self, last: int, accounts: Accounts) -> list[dict[str, Any]]:
        """The last decisions for people, newest first: the flat decision, the alternatives, and
        what came of it, up to now where it is still in force."""
        yes = self.approvals.in_force()
        return [
            self._row(record, accounts)
            | {"approved": record.id in yes, "approved_by": yes.get(record.id)}
            for record in list(self._records)[::-1][: max(last, 0)]
        ]

    def _row(self, record: Record, accounts: Accounts) -> dict[str, Any]:
        open_id, then = self._open.get(record.key, ("", None))
        in_force = open_id == record.id
        came = outcome(then, accounts(record.key)) if in_force else self._outcomes.get(record.id)
        row = row_of(record, self._alternatives_of(record), came)
        return row | {"in_force": in_force}

    def _alternatives_of(self, record: Record) -> list[dict[str, Any]]:
        """Worked out once, when somebody looks."""
        if record.id not in self._alternatives:
            self._alternatives[record.id] = alternatives_of(record, self.profiles)
            _keep(self._alternatives, _KEPT)
        return self._alternatives[record.id]

    def records(self, last: int) -> dict[str, Any]:
        """The last records as they were taken, oldest first, and their profiles."""
        kept = list(self._records)[-max(last, 0) :] if last > 0 else []
        used = {record.profile for record in kept}
        return {
            "records": [record.model_dump(mode="json") for record in kept],
            "profiles": {name: data for name, data in self.profiles.items() if name in used},
        }


def _keep(held: OrderedDict[Any, Any], most: int) -> None:
    """Forget the oldest."""
    while len(held) > most:
        held.popitem(last=False)
