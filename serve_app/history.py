"""The last hour of an application, a sample every few seconds, for the page."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

EVERY_S = 5.0
_KEPT = 720  # an hour
RATE_WINDOW_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One deployment at one moment. Totals run from the start of the ledger: `joules` (None = not
    metered), `requests`, `judged` for the SLO, `met`. The rest is as it was then: replicas that
    report and that were asked for, mean batch cap, mean power limit in force (None = none of ours),
    draw by kind of device."""

    time_utc_s: float
    joules: float | None
    requests: float
    judged: float
    met: float
    replicas: int
    requested_replicas: int | None
    running: float
    waiting: float
    batch_cap: float | None
    limit_watts: float | None
    draw_watts: Mapping[str, float] = field(default_factory=dict)


class History:
    """Keeps the samples of an hour."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[Sample]] = {}
        self._last_s: dict[str, float] = {}

    def due(self, deployment: str, now_s: float) -> bool:
        """Whether it is time for the next sample."""
        last_s = self._last_s.get(deployment)
        return last_s is None or now_s - last_s >= EVERY_S

    def add(self, deployment: str, sample: Sample, now_s: float) -> None:
        self._last_s[deployment] = now_s
        self._samples.setdefault(deployment, deque(maxlen=_KEPT)).append(sample)

    def rows(self, since_utc_s: float = 0.0) -> dict[str, list[dict[str, Any]]]:
        """Per deployment, oldest first: the samples after `since_utc_s` with `joules_per_request`,
        `requests_per_s` and `attainment_ratio` over the minute before each."""
        return {
            name: [row for row in with_rates(samples) if row["time_utc_s"] > since_utc_s]
            for name, samples in self._samples.items()
        }


def with_rates(samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """The samples with what happened in the minute before each; None where nothing can be said."""
    rows: list[dict[str, Any]] = []
    window: deque[Sample] = deque()
    for sample in samples:
        window.append(sample)
        while len(window) > 2 and sample.time_utc_s - window[1].time_utc_s >= RATE_WINDOW_S:
            window.popleft()
        if sample.requests < window[0].requests:  # counted anew
            window = deque([sample])
        rows.append({**asdict(sample), **_rates(window[0], sample)})
    return rows


def _rates(first: Sample, last: Sample) -> dict[str, float | None]:
    for_s, requests = last.time_utc_s - first.time_utc_s, last.requests - first.requests
    judged = last.judged - first.judged
    joules = None
    if first.joules is not None and last.joules is not None:
        joules = last.joules - first.joules
    return {
        "requests_per_s": requests / for_s if for_s > 0.0 else None,
        "joules_per_request": joules / requests if joules is not None and requests else None,
        "attainment_ratio": (last.met - first.met) / judged if judged else None,
    }
