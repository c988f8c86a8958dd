"""The newest reports of all replicas as columns, as the controller reads them once a second.

A thousand replicas send some 40 values each: what is done per value must be done by the
interpreter's own loops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.core.lengths import WEIGHTS
from policies.core.types import ReplicaObservation
from policies.model.online import Correction
from serve_app.replica_report import (
    BINS,
    LENGTH_SPAN,
    LENGTH_STEPS,
    REPORT,
    SEEN,
    WHOLE,
    unknown,
)

_ALWAYS = frozenset({"num_running", "num_waiting", "arrival_rate_per_s"})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reports:
    """One place per replica in every column. `times_s`: the wall clock of the report."""

    names: tuple[str, ...] = ()
    times_s: tuple[float, ...] = ()
    columns: Mapping[str, list[float]]

    def __len__(self) -> int:
        return len(self.names)

    def known(self, key: str) -> list[float | None]:
        """The column, None where a replica does not know it."""
        missing, column = unknown(key), self.columns[key]
        if missing not in column:
            return list(column)
        return [None if value == missing else value for value in column]

    def observations(self, queued: float = 0.0) -> list[ReplicaObservation]:
        """What each replica had seen, in the order of `names`; `queued` requests that have no
        replica yet count as waiting, spread over all."""
        columns: list[list[Any]] = []
        for key in SEEN:
            column: list[Any] = self.columns[key] if key in _ALWAYS else self.known(key)
            if key in WHOLE:
                column = [None if value is None else int(value) for value in column]
            if key == "num_waiting" and queued > 0.0:
                column = [value + queued / len(self) for value in column]
            columns.append(column)
        columns += [self._bins(keys) for keys in BINS.values()]
        keys = (*SEEN, *BINS)
        return [
            ReplicaObservation(replica=name, time_s=time_s, **dict(zip(keys, values, strict=True)))
            for name, time_s, *values in zip(self.names, self.times_s, *columns, strict=True)
        ]

    def corrections(self) -> list[Correction]:
        """What the steps of each replica say about the model."""
        return [
            Correction(step_time_ratio=time, energy_ratio=energy, at_bound=bound > 0.0)
            for time, energy, bound in zip(
                self.known("step_time_ratio"),
                self.known("energy_ratio"),
                self.columns["at_bound"],
                strict=True,
            )
        ]

    def _bins(self, keys: tuple[str, ...]) -> list[tuple[float, ...] | None]:
        pairs = np.array([self.columns[key] for key in keys])
        first = np.floor(pairs / LENGTH_SPAN)
        both = np.stack((first, pairs - first * LENGTH_SPAN), axis=1) / LENGTH_STEPS
        rows = both.reshape(2 * len(keys), -1)[: len(WEIGHTS)].T.tolist()
        missing = pairs[0] == unknown(keys[0])
        return [None if nothing else tuple(row) for row, nothing in zip(rows, missing, strict=True)]


NOTHING = Reports(columns={name: [] for name in REPORT})


def latest_reports(context: Any) -> Reports:
    """The newest report of each replica, by name. Who lacks a value, or is not counted as running
    by Ray any more, is left out."""
    raw = context.raw_metrics or {}
    series = [raw.get(name) or {} for name in REPORT]
    running = {str(getattr(r, "unique_id", r)) for r in context.running_replicas or ()}
    ids, columns, times = _newest(series)
    names = [str(getattr(one, "unique_id", one)) for one in ids]
    order = sorted(
        (place for place, name in enumerate(names) if not running or name in running),
        key=names.__getitem__,
    )
    if order != list(range(len(ids))):
        names = [names[place] for place in order]
        times = [times[place] for place in order]
        columns = [[column[place] for place in order] for column in columns]
    return Reports(
        names=tuple(names), times_s=tuple(times), columns=dict(zip(REPORT, columns, strict=True))
    )


def _newest(
    series: list[Mapping[Any, list[Any]]],
) -> tuple[list[Any], list[list[Any]], list[float]]:
    """Whom every series knows, the last values of each series for them, and since when the older of
    the first and the last are there: a replica sends all at once."""
    ids = list(series[0])
    if not all(list(one) == ids and all(one.values()) for one in series):  # Ray keeps one order
        ids = [one for one in ids if all(each.get(one) for each in series)]
        series = [{one: each[one] for one in ids} for each in series]
    values = [[entries[-1].value for entries in one.values()] for one in series]
    ends = [[entries[-1].timestamp for entries in one.values()] for one in (series[0], series[-1])]
    return ids, values, list(map(min, *ends))
