"""What was measured of one load, as plain data that can be written, read back and compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from policies.core.errors import EngineError
from serve_app.fidelity.simulated import Life

if TYPE_CHECKING:
    from serve_app.bench.result import BenchResult
    from serve_app.request_log.row import Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """One request as its replica recorded it. Times in seconds since the load began: `arrival_s` at
    the replica; `ttft_s`, `tpot_s` in the engine (None: one token)."""

    arrival_s: float
    end_s: float
    replica: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Books:
    """The application's meter at one moment, joules of all replicas that have told of theirs."""

    time_s: float
    joules: float
    num_replicas: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What else went on. `yardstick_*_s`: per token of one request alone, before and after the run;
    `read_s`, `compute_s`: a small fixed work, window by window (`pulse`); `foreign_cores`: used by
    processes that are neither the service nor the client; `client_cores`: by the client."""

    yardstick_before_s: float | None = None
    yardstick_after_s: float | None = None
    read_s: tuple[float, ...] = ()
    compute_s: tuple[float, ...] = ()
    foreign_cores: float = 0.0
    client_cores: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """One run of a load. `client_*_s`: as the client saw them, in the order of sending."""

    load: str
    round: int
    started_at: str
    requests: tuple[Served, ...]
    lives: tuple[Life, ...]
    books: tuple[Books, ...]
    arrived: int
    completed: int
    client_ttft_s: tuple[float, ...]
    client_tpot_s: tuple[float, ...]
    schedule_lag_p99_s: float
    conditions: Conditions = Conditions()

    @property
    def arrivals(self) -> list[tuple[float, int, int]]:
        """Arrival, prompt and output tokens, in the order of arrival."""
        return [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in self.requests]

    @property
    def end_s(self) -> float:
        """When the last request ended at its replica."""
        return max(request.end_s for request in self.requests)

    def joules(self, begin_s: float, end_s: float) -> float:
        """What the meter counted from `begin_s` to `end_s`, linear between its readings."""
        times = [one.time_s for one in self.books]
        begin, end = np.interp((begin_s, end_s), times, [one.joules for one in self.books])
        return float(end - begin)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """What `to_dict` made."""
        parts = {
            "requests": tuple(Served(**one) for one in data["requests"]),
            "lives": tuple(Life(**one) for one in data["lives"]),
            "books": tuple(Books(**one) for one in data["books"]),
            "client_ttft_s": tuple(data["client_ttft_s"]),
            "client_tpot_s": tuple(data["client_tpot_s"]),
            "conditions": Conditions(
                **{
                    **data["conditions"],
                    "read_s": tuple(data["conditions"]["read_s"]),
                    "compute_s": tuple(data["conditions"]["compute_s"]),
                }
            ),
        }
        return cls(**{**data, **parts})


def observed(
    name: str, number: int, result: BenchResult, rows: Iterable[Row], lives: Sequence[Life]
) -> Observed:
    """Join what the client saw with what the replicas recorded. Times of `rows` and `lives` are
    UNIX times. EngineError where a completed request has no row.

    The client's clock is placed by the requests themselves: the n-th that was sent is taken as the
    n-th that arrived, and the median way is 0. (What a way is longer than the median is in the
    arrival; the common part is not, as it is in no figure of a replica.)
    """
    found = sorted((row for row in rows if row.output_tokens), key=lambda row: row.start)
    sent = sorted(record.sent_s for record in result.records if record.completed)
    if len(found) != len(sent) or not sent:
        raise EngineError(f"{name}: {len(sent)} requests completed, {len(found)} recorded")
    ways = [row.start.timestamp() - at for row, at in zip(found, sent, strict=True)]
    zero_s = float(np.median(ways))
    done = [record for record in result.records if record.completed]
    return Observed(
        load=name,
        round=number,
        started_at=result.facts.started_at,
        requests=tuple(_served(row, zero_s) for row in found),
        lives=tuple(_since(life, zero_s) for life in lives),
        books=tuple(
            Books(time_s=s.time_s, joules=joules, num_replicas=s.num_replicas)
            for s in result.fleet_samples
            if (joules := s.joules["meter"]) is not None
        ),
        arrived=len(result.records),
        completed=len(done),
        client_ttft_s=tuple(r.ttft_s for r in done if r.ttft_s is not None),
        client_tpot_s=tuple(r.tpot_s for r in done if r.tpot_s is not None),
        schedule_lag_p99_s=float(
            np.percentile([r.sent_s - r.scheduled_s for r in result.records], 99)
        ),
    )


def start_joules(run: Observed) -> float | None:
    """What a replica that started during the run had used when it first told of its meter: the
    jump of the books, less what the others drew in that second. None where none started."""
    for at, (before, after) in enumerate(pairwise(run.books)):
        if after.num_replicas > before.num_replicas:
            past = [one for one in run.books[: at + 1] if one.time_s >= before.time_s - 10.0]
            drawn_s = past[-1].time_s - past[0].time_s
            watts = (past[-1].joules - past[0].joules) / drawn_s if drawn_s > 0.0 else 0.0
            return after.joules - before.joules - watts * (after.time_s - before.time_s)
    return None


def _served(row: Row, zero_s: float) -> Served:
    return Served(
        arrival_s=max(0.0, row.start.timestamp() - zero_s),
        end_s=row.end.timestamp() - zero_s,
        replica=row.replica,
        prompt_tokens=row.prompt_tokens or 0,
        cached_tokens=row.cached_tokens or 0,
        output_tokens=row.output_tokens or 0,
        ttft_s=row.ttft_s or 0.0,
        tpot_s=row.tpot_s,
    )


def _since(life: Life, zero_s: float) -> Life:
    return replace(
        life,
        asked_s=None if life.asked_s is None else life.asked_s - zero_s,
        ready_s=max(0.0, life.ready_s - zero_s),
        stopping_s=None if life.stopping_s is None else life.stopping_s - zero_s,
    )
