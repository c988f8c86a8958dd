"""What replicas report: rates, lengths and tails over the recent past, for all at once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from policies.core.lengths import bins_of
from policies.core.window import MIN_SPAN_S
from policies.sim.fleet_state import RING, Fleet, Floats, Ints

LENGTHS_EVERY_S = 10.0  # how often a replica looks at its lengths anew


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


class Tails:
    """The measured percentiles of what ended in the last `horizon_s` seconds."""

    def __init__(self, horizon_s: float, replicas: int) -> None:
        self._horizon_s, self._replicas = horizon_s, replicas
        self._chunks: deque[Ended] = deque()
        nothing_known = np.full(replicas, np.nan)
        self.ttft_s, self.tpot_s = nothing_known, nothing_known

    def add(self, now_s: float, ended: Ended) -> None:
        """What ended since the last call."""
        self._chunks.append(ended)
        oldest_s = now_s - self._horizon_s
        while len(self._chunks) > 1 and not (self._chunks[0].end_s > oldest_s).any():
            self._chunks.popleft()

    def look(self, now_s: float, percentile: float) -> None:
        """Take `ttft_s` and `tpot_s` of each replica anew; nan where it has none."""
        recent = joined([one.after(now_s - self._horizon_s) for one in self._chunks])
        self.ttft_s = percentiles(recent.replica, recent.ttft_s, self._replicas, percentile)
        self.tpot_s = percentiles(recent.replica, recent.tpot_s, self._replicas, percentile)


class Counts:
    """Arrivals per second and replica, over the horizon and over the last seconds."""

    def __init__(self, horizon_s: float, recent_s: float, replicas: int) -> None:
        self._horizon_s, self._recent_s = horizon_s, recent_s
        self._seen: deque[tuple[float, Ints]] = deque([(0.0, np.zeros(replicas, np.int64))])
        self.rate_per_s = self.recent_per_s = np.zeros(replicas)

    def add(self, now_s: float, fleet: Fleet, since_s: Floats) -> None:
        """What has arrived up to `now_s`; `since_s`: when each replica was first there."""
        sums = fleet.arrived.copy()
        self._seen.append((now_s, sums))
        while len(self._seen) > 1 and self._seen[1][0] <= now_s - self._horizon_s:
            self._seen.popleft()
        begin_s, before = self._seen[0]
        self.rate_per_s = (sums - before) / _span_s(now_s, begin_s, since_s)
        past = (one for one in reversed(self._seen) if one[0] <= now_s - self._recent_s)
        begin_s, before = next(past, self._seen[0])
        self.recent_per_s = (sums - before) / _span_s(now_s, begin_s, since_s)


class LengthsSeen:
    """Each replica's last lengths as bins, looked at every 10 s."""

    def __init__(self, replicas: int) -> None:
        self.prompts: list[tuple[float, ...] | None] = [None] * replicas
        self.outputs: list[tuple[float, ...] | None] = [None] * replicas
        self._looked_s = np.full(replicas, -np.inf)

    def look(self, now_s: float, fleet: Fleet, replica: int) -> None:
        """Take them anew if that is due."""
        known = self.outputs[replica] is not None
        if now_s - self._looked_s[replica] < (LENGTHS_EVERY_S if known else 0.0):
            return
        self._looked_s[replica] = now_s
        prompts = fleet.ring_prompt[replica, : min(RING, fleet.arrived[replica])]
        outputs = fleet.ring_output[replica, : min(RING, fleet.ended[replica])]
        self.prompts[replica], self.outputs[replica] = bins_of(prompts), bins_of(outputs)


def _span_s(now_s: float, begin_s: float, since_s: Floats) -> Floats:
    return np.maximum(now_s - np.maximum(since_s, begin_s), MIN_SPAN_S)


def joined(parts: list[Ended]) -> Ended:
    """All in one."""
    if not parts:
        return nothing()
    if len(parts) == 1:
        return parts[0]
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
