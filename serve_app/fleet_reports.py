"""The newest reports of all replicas as a table, as the controller reads them once a second."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import repeat
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

    def column(self, key: str) -> NDArray[np.float64]:
        """One value of every replica."""
        return np.asarray(self.values[:, _PLACE[key]])

    def least(self, key: str) -> float:
        """The smallest of a value that always is there. Raises ValueError without replicas."""
        return float(self.column(key).min())

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
        whole = [_PLACE[name] for name in WHOLE]
        cells = seen.astype(object)
        cells[:, whole] = np.nan_to_num(seen[:, whole]).clip(0.0, _MOST).astype(np.int64)
        cells[np.isnan(seen)] = None
        bins = [self._bins(name) for name in BINS]
        return _by_column(self.names, self.times_s, *cells.T.tolist(), *bins)

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
        missing: Any = np.isnan(table).any(axis=1)
        return [
            None if nothing else tuple(row)
            for row, nothing in zip(table.tolist(), missing, strict=True)
        ]


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
    newest = {_name(one): entries[-1] for one, entries in series.items() if entries}
    names = sorted(
        name
        for name, entry in newest.items()
        if (name in running or not running) and is_report(entry.value)
    )
    if not names:
        return NOTHING
    values = read([newest[name].value for name in names])
    whole: Any = np.isfinite(values[:, _ALWAYS]).all(axis=1)
    if not whole.all():
        names = [name for name, good in zip(names, whole, strict=True) if good]
        values = values[whole]
    return Reports(
        names=tuple(names),
        times_s=tuple(newest[name].timestamp for name in names),
        values=values,
    )


def _name(replica: Any) -> str:
    return str(getattr(replica, "unique_id", replica))
