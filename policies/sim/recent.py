"""What replicas report: rates, lengths and tails over the recent past, for all at once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from policies.core.window import MIN_SPAN_S
from policies.sim.fleet_state import Floats, Ints


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ended:
    """Requests that ended: when, where, how long they were and what they waited for."""

    end_s: Floats
    replica: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    ttft_s: Floats
    tpot_s: Floats  # nan: one token only

    def after(self, time_s: float) -> Ended:
        """Those that ended later than that."""
        keep = self.end_s > time_s
        return self if keep.all() else Ended(**{n: getattr(self, n)[keep] for n in FIELDS})


FIELDS = ("end_s", "replica", "prompt_tokens", "output_tokens", "ttft_s", "tpot_s")


def nothing() -> Ended:
    """No request."""
    whole, real = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float64)
    return Ended(
        end_s=real,
        replica=whole,
        prompt_tokens=whole,
        output_tokens=whole,
        ttft_s=real,
        tpot_s=real,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Statistics:
    """Per replica; nan where its window holds nothing."""

    arrival_rate_per_s: Floats
    prompt_tokens: Floats
    output_tokens: Floats
    ttft_s: Floats
    tpot_s: Floats


class Recent:
    """The last `horizon_s` seconds of `replicas` replicas."""

    def __init__(self, horizon_s: float, replicas: int) -> None:
        self._horizon_s, self._replicas = horizon_s, replicas
        self._chunks: deque[Ended] = deque()
        self._arrived: deque[tuple[float, Ints]] = deque([(0.0, np.zeros(replicas, np.int64))])

    def add(self, now_s: float, ended: Ended, arrived: Ints) -> None:
        """What ended since the last call, and how many requests each replica has had so far."""
        self._chunks.append(ended)
        self._arrived.append((now_s, arrived.copy()))
        oldest_s = now_s - self._horizon_s
        while (
            self._chunks
            and not (self._chunks[0].end_s > oldest_s).any()
            and (len(self._chunks) > 1)
        ):
            self._chunks.popleft()
        while len(self._arrived) > 1 and self._arrived[1][0] <= oldest_s:
            self._arrived.popleft()

    def statistics(self, now_s: float, since_s: Floats, percentile: float) -> Statistics:
        """`since_s`: when each replica was first there."""
        recent = joined([one.after(now_s - self._horizon_s) for one in self._chunks])
        begin_s, before = self._arrived[0]
        span_s = np.maximum(now_s - np.maximum(since_s, begin_s), MIN_SPAN_S)
        count = np.bincount(recent.replica, minlength=self._replicas)

        def mean(values: Ints) -> Floats:
            total = np.bincount(recent.replica, weights=values, minlength=self._replicas)
            return np.where(count > 0, total / np.maximum(count, 1), np.nan)

        return Statistics(
            arrival_rate_per_s=(self._arrived[-1][1] - before) / span_s,
            prompt_tokens=mean(recent.prompt_tokens),
            output_tokens=mean(recent.output_tokens),
            ttft_s=percentiles(recent.replica, recent.ttft_s, self._replicas, percentile),
            tpot_s=percentiles(recent.replica, recent.tpot_s, self._replicas, percentile),
        )


def joined(parts: list[Ended]) -> Ended:
    """All in one."""
    if not parts:
        return nothing()
    return Ended(**{n: np.concatenate([getattr(one, n) for one in parts]) for n in FIELDS})


def percentiles(group: Ints, values: Floats, groups: int, q: float) -> Floats:
    """The nearest-rank percentile of each group; nan where it has no value."""
    known = ~np.isnan(values)
    group, values = group[known], values[known]
    order = np.lexsort((values, group))
    count = np.bincount(group, minlength=groups)
    rank = np.clip(np.ceil(q * count - 1e-9).astype(np.int64) - 1, 0, np.maximum(count - 1, 0))
    place = np.cumsum(count) - count + rank
    found = np.full(groups, np.nan)
    has = count > 0
    found[has] = values[order][place[has]]
    return found
