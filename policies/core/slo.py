"""Did a request meet its targets, and which share of all requests did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from policies.core.errors import ConfigError
from policies.core.types import SLO


def percentile(values: Sequence[float], q: float) -> float | None:
    """The smallest value that at least the share `q` of `values` does not exceed; None when empty.

    Nearest rank (rank = ceil(q n)): always one of the values, never an interpolation. 0 < q <= 1,
    else ConfigError.
    """
    if not 0.0 < q <= 1.0:
        raise ConfigError(f"percentile is {q}; allowed: a number above 0 and at most 1")
    if not values:
        return None
    return sorted(values)[nearest_rank(len(values), q)]


def nearest_rank(count: int, q: float) -> int:
    """The 0-based index of the `q` percentile among `count` > 0 sorted values."""
    return min(max(math.ceil(q * count - 1e-9) - 1, 0), count - 1)


def meets(slo: SLO, ttft_s: float | None, tpot_s: float | None) -> bool:
    """Whether a completed request met both targets.

    `tpot_s` None is an answer of one token: only the TTFT counts. `ttft_s` None or NaN is a miss.
    """
    in_time = ttft_s is not None and ttft_s <= slo.ttft_s
    return in_time and (tpot_s is None or tpot_s <= slo.tpot_s)


def attainment_ratio(
    slo: SLO, completed: Iterable[tuple[float | None, float | None]], num_arrived: int
) -> float | None:
    """The share, 0..1, of *arrived* requests that met both targets; None if nothing arrived.

    `completed` holds (TTFT, TPOT) in seconds of each completed request. Failed, rejected and
    aborted requests are in `num_arrived` only, and so count as misses.
    """
    if num_arrived <= 0:
        return None
    met = sum(1 for ttft_s, tpot_s in completed if meets(slo, ttft_s, tpot_s))
    return min(met / num_arrived, 1.0)


def tightened(slo: SLO, headroom_ratio: float) -> SLO:
    """The same targets, each smaller by `headroom_ratio` (0..1)."""
    keep = 1.0 - min(max(headroom_ratio, 0.0), 0.99)
    return replace(slo, ttft_s=slo.ttft_s * keep, tpot_s=slo.tpot_s * keep)
