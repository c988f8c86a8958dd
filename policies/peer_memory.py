"""What a peer remembers between ticks. One object per run; nothing here reads a clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from policies.core.observe import misses
from policies.core.types import SLO, ReplicaObservation

MISSES_S = 30.0  # the past in which a miss counts
MOST_REMEMBERED = 20_000  # answers

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Memo(Generic[_Key, _Value]):
    """Answers to questions that were asked before; forgets all when there are too many."""

    def __init__(self) -> None:
        self._known: dict[_Key, _Value] = {}

    def get(self, key: _Key, make: Callable[[], _Value]) -> _Value:
        """The answer, made where it is new."""
        if key not in self._known:
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            self._known[key] = make()
        return self._known[key]


class Due:
    """When each of several things was last done, by name; also after a clock that went back."""

    def __init__(self) -> None:
        self._done_s: dict[str, float] = {}

    def again(self, name: str, now_s: float, interval_s: float) -> bool:
        """Whether it is time again; counts as done if so."""
        last_s = self._done_s.get(name)
        if last_s is not None and last_s <= now_s < last_s + interval_s:
            return False
        self._done_s[name] = now_s
        return True


class RecentMost:
    """Values over time, and the largest of the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()  # values that fall, times that rise

    def add(self, now_s: float, value: float) -> None:
        """Take in a value. One that a later value exceeds is never the largest again."""
        while self._seen and (self._seen[-1][1] <= value or self._seen[-1][0] > now_s):
            self._seen.pop()
        self._seen.append((now_s, value))

    def most(self, now_s: float, window_s: float) -> float | None:
        """The largest of the last `window_s` seconds; None where there is none."""
        while self._seen and self._seen[0][0] < now_s - window_s:
            self._seen.popleft()
        return self._seen[0][1] if self._seen else None


class Misses:
    """Whether replicas miss the SLO now, from what they have counted so far.

    More misses in the last 30 s than the percentile allows, and more than one. Only requests that
    could meet the SLO at all are counted: those that no setting can serve in time are no reason to
    run at full power. Replicas that do not count are judged by their percentiles.
    """

    def __init__(self) -> None:
        self._seen: dict[str, deque[tuple[float, float, float]]] = {}

    def late(self, replicas: Iterable[ReplicaObservation], now_s: float, slo: SLO) -> bool:
        """Whether one of these replicas does; to be asked every tick."""
        late = [self._late(one, now_s, slo) for one in replicas]  # look at all of them
        return any(late)

    def _late(self, one: ReplicaObservation, now_s: float, slo: SLO) -> bool:
        if one.num_judged is None or one.num_late is None or one.num_slow is None:
            return any(misses((one,), slo))
        judged, missed = number(one.num_judged), number(one.num_late) + number(one.num_slow)
        seen = self._seen.setdefault(one.replica, deque())
        if seen and (judged < seen[-1][1] or now_s < seen[-1][0]):
            seen.clear()  # another replica of that name, or another clock
        seen.append((now_s, judged, missed))
        while len(seen) > 1 and seen[1][0] <= now_s - MISSES_S:
            seen.popleft()
        _, judged_before, missed_before = seen[0]
        allowed = (1.0 - slo.percentile) * (judged - judged_before)
        return missed - missed_before > max(allowed, 1.0)


def number(value: float | None) -> float:
    """The value as a finite number >= 0; 0 where it is none."""
    return value if value is not None and math.isfinite(value) and value > 0.0 else 0.0
