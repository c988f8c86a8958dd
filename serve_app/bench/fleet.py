"""The server's own books and replicas over a run: samples of GET /jouleserve/energy.

The endpoint is JouleServe's; another server does not have it, and the report says so. Its sums are
counters since the application started, and hold `meter` = attributed + open + idle + unattributed -
prepaid at every moment (`open`: of requests still under way; `prepaid`: told to a client before the
meter had it). A sum is null where nothing could be measured.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import Any

import aiohttp

PATH = "/jouleserve/energy"
SUMS = ("meter", "attributed", "open", "idle", "unattributed", "prepaid")
_TIMEOUT = aiohttp.ClientTimeout(total=3.0)
_PERIOD_S = 1.0
_SETTLE_S = 5.0
_SETTLE_PERIOD_S = 0.5
_STILL_POLLS = 3  # replicas report about once a second: two equal polls can be one report


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetSample:
    """One answer of the endpoint, `time_s` after the start of the run.

    `joules` maps each of SUMS to its counter. `num_running` and `max_num_active_seqs` map a
    replica to its value; None where it did not say.
    """

    time_s: float
    joules: dict[str, float | None]
    num_replicas: int
    num_running: dict[str, float | None]
    max_num_active_seqs: dict[str, float | None]

    @classmethod
    def from_api(cls, content: Any, time_s: float) -> FleetSample:
        """Return the sample. Raises TypeError or KeyError for what is not such an answer."""
        replicas = content["replicas"]
        names = [f"{item.get('deployment', '')}#{item['replica']}".lstrip("#") for item in replicas]
        return cls(
            time_s=time_s,
            joules={name: _number(content.get(f"{name}_joules")) for name in SUMS},
            num_replicas=int(content.get("num_replicas", len(replicas))),
            num_running=_by_name(names, replicas, "num_running"),
            max_num_active_seqs=_by_name(names, replicas, "max_num_active_seqs"),
        )

    @property
    def busy(self) -> bool:
        """Whether a replica still runs requests or has joules of open ones."""
        return any(self.num_running.values()) or (self.joules["open"] or 0.0) > 1e-6


@dataclass(slots=True)
class FleetWatch:
    """Samples the endpoint before, during and after a run; `samples` stays empty without it."""

    session: aiohttp.ClientSession
    url: str
    start_s: float
    samples: list[FleetSample] = field(default_factory=list)

    async def first(self) -> bool:
        """Take the sample before the run; whether the server offers the endpoint at all."""
        return await self._sample()

    async def watch(self) -> None:
        """Sample every second until cancelled. A sample that fails is left out."""
        while True:
            await asyncio.sleep(_PERIOD_S)
            await self._sample()

    async def settle(self) -> bool:
        """Sample until the books stand still, at most 5 s; whether they do."""
        still, end = 0, perf_counter() + _SETTLE_S
        while still < _STILL_POLLS and perf_counter() < end:
            before = self.samples[-1].joules["attributed"] if self.samples else None
            if not await self._sample():
                still = 0
            else:
                last = self.samples[-1]
                still = still + 1 if last.joules["attributed"] == before and not last.busy else 0
            await asyncio.sleep(_SETTLE_PERIOD_S)
        return still >= _STILL_POLLS

    async def _sample(self) -> bool:
        with suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError, TypeError, KeyError):
            async with self.session.get(self.url, timeout=_TIMEOUT) as response:
                if response.status == 200:
                    content = await response.json(content_type=None)
                    time_s = perf_counter() - self.start_s
                    self.samples.append(FleetSample.from_api(content, time_s))
                    return True
        return False


def spent(samples: list[FleetSample], name: str) -> float | None:
    """Return how much a sum grew over the samples, joules.

    None where an end is missing, or where a counter fell: its replica is gone, the difference
    would be wrong. `open` and `prepaid` are levels, which may fall.
    """
    values = [sample.joules[name] for sample in samples]
    first, last = values[0], values[-1]
    if first is None or last is None:
        return None
    known = [value for value in values if value is not None]
    if name not in ("open", "prepaid") and any(b < a - 1e-6 for a, b in pairwise(known)):
        return None
    return last - first


def replica_seconds(samples: list[FleetSample], end_s: float) -> float:
    """Return the integral of the replica count over 0..end_s; a count holds to the next sample."""
    total = 0.0
    times = [0.0, *(sample.time_s for sample in samples[1:]), max(end_s, 0.0)]
    for sample, (begin, end) in zip(samples, pairwise(times), strict=True):
        total += sample.num_replicas * max(0.0, min(end, end_s) - begin)
    return total


def changes(values: list[float]) -> dict[str, float | int | None]:
    """Return the least, the greatest and the number of changes of a series."""
    return {
        "min": min(values, default=None),
        "max": max(values, default=None),
        "changes": sum(1 for before, after in pairwise(values) if before != after),
    }


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _by_name(names: list[str], replicas: Any, key: str) -> dict[str, float | None]:
    return {name: _number(item.get(key)) for name, item in zip(names, replicas, strict=True)}
