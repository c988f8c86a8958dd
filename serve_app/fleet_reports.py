"""The newest reports of all replicas as a table, as the controller reads them once a second."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import repeat
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.core.lengths import WEIGHTS
from policies.core.types import ReplicaObservation
from policies.model.bias import CorrectionSettings
from policies.model.online import Correction, median_correction
from serve_app.replica_report import ALWAYS, BINS, KEY, SEEN, VALUES, WHOLE, is_report, read

_PLACE = {name: place for place, name in enumerate(VALUES)}
_ALWAYS = [_PLACE[name] for name in ALWAYS]
_LEARNED = [_PLACE[name] for name in ("step_time_ratio", "energy_ratio", "at_bound")]
_PUT = [getattr(ReplicaObservation, item.name).__set__ for item in fields(ReplicaObservation)]
_WHOLE = [_PLACE[name] for name in WHOLE]
_MOST = 1e9  # of what is counted in whole numbers


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reports:
    """One row per replica, in the order of `names`; a column per value of a report, NaN where a
    replica does not know it. `times_s`: the wall clock of the report."""

    names: tuple[str, ...] = ()
    times_s: tuple[float, ...] = ()
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.names)

    def only(self, places: list[int]) -> Reports:
        """These rows alone."""
        return Reports(
            names=tuple(self.names[place] for place in places),
            times_s=tuple(self.times_s[place] for place in places),
            values=self.values[places],
        )

    def column(self, key: str) -> NDArray[np.float64]:
        """One value of every replica."""
        return np.asarray(self.values[:, _PLACE[key]])

    def least(self, *keys: str) -> tuple[float, ...]:
        """The smallest of values that always are there. Raises ValueError without replicas."""
        return tuple(self.values[:, [_PLACE[key] for key in keys]].min(axis=0).tolist())

    def most(self, key: str) -> float:
        """The largest of a value that always is there. Raises ValueError without replicas."""
        return float(self.column(key).max())

    def known(self, key: str) -> list[float]:
        """One value of the replicas that know it."""
        column = self.column(key)
        return list(column[~np.isnan(column)].tolist())

    def observations(self, queued: float = 0.0) -> list[ReplicaObservation]:
        """What each replica had seen; `queued` requests that have no replica yet count as waiting,
        spread over all."""
        seen = self.values[:, : len(SEEN)]
        if queued > 0.0 and len(self):
            seen = seen.copy()
            seen[:, _PLACE["num_waiting"]] += queued / len(self)
        missing = np.isnan(seen)
        columns = seen.T.tolist()
        counts = np.where(missing, 0.0, seen)[:, _WHOLE].clip(0.0, _MOST).astype(np.int64)
        for place, column in zip(_WHOLE, counts.T.tolist(), strict=True):
            columns[place] = column
        for place in np.flatnonzero(missing.any(axis=0)).tolist():
            columns[place] = _or_none(columns[place], missing[:, place])
        return _by_column(self.names, self.times_s, *columns, *map(self._bins, BINS))

    def correction(
        self, now_s: float, stale_after_s: float, settings: CorrectionSettings
    ) -> Correction:
        """What the steps of the replicas with a fresh report say about the model, as
        `fleet_correction` has it."""
        fresh = np.abs(now_s - np.array(self.times_s)) <= stale_after_s
        table = self.values[fresh][:, _LEARNED]
        table = table[np.isfinite(table[:, :2]).any(axis=1)]
        return median_correction(
            table[:, 0].tolist(),
            table[:, 1].tolist(),
            settings,
            at_bound=bool(2 * np.count_nonzero(table[:, 2] > 0.0) > len(table)),
        )

    def _bins(self, name: str) -> list[tuple[float, ...] | None]:
        first = _PLACE[f"{name}_0"]
        table = self.values[:, first : first + len(WEIGHTS)]
        return _or_none(list(zip(*table.T.tolist(), strict=True)), np.isnan(table).any(axis=1))


def _or_none(values: list[Any], missing: Any) -> list[Any]:
    """The values, None in place of the missing ones."""
    if not missing.any():
        return values
    return [None if none else one for one, none in zip(values, missing.tolist(), strict=True)]


def _by_column(*columns: Sequence[Any]) -> list[ReplicaObservation]:
    """The same as `list(map(ReplicaObservation, *columns))`, in half the time: the constructor of
    a frozen dataclass looks up `object.__setattr__` for each of its fields."""
    made = list(map(object.__new__, repeat(ReplicaObservation, len(columns[0]))))
    for put, column in zip(_PUT, columns, strict=True):
        deque(map(put, made, column), maxlen=0)
    return made


NOTHING = Reports(values=np.empty((0, len(VALUES))))


def latest_reports(context: Any) -> Reports:
    """The newest report of each replica, by name. Who sends none of this release, lacks a value
    that always is there, or is not counted as running by Ray any more, is left out."""
    series = (context.raw_metrics or {}).get(KEY) or {}
    running = {_name(one) for one in context.running_replicas or ()}
    newest = [
        (name, entries[-1])
        for name, entries in [(_name(one), entries) for one, entries in series.items()]
        if entries and (name in running or not running) and is_report(entries[-1].value)
    ]
    if not newest:
        return NOTHING
    newest.sort(key=itemgetter(0))
    names, entries = zip(*newest, strict=True)
    times_s = tuple([entry.timestamp for entry in entries])
    values = read([entry.value for entry in entries])
    whole = np.isfinite(values[:, _ALWAYS]).all(axis=1)
    reports = Reports(names=names, times_s=times_s, values=values)
    return reports if whole.all() else reports.only(np.flatnonzero(whole).tolist())


def _name(replica: Any) -> str:
    return str(getattr(replica, "unique_id", replica))
