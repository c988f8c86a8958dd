"""Whether the machine itself was slower than it can be while a sample was taken. Pure.

On a shared machine a neighbour that cannot be seen from here, in another virtual machine on the
other thread of a core, slows a step by half for seconds or minutes. So a fixed small piece of work,
one sequence that decodes, is timed before and after every window: a sample beside which that took
longer than it does at other times is disturbed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serve_app.profiler.samples import Sample

SLOW_RATIO = 1.15  # against the machine's quick state; the yardstick itself repeats within 4 %
QUICK_PERCENTILE = 10.0  # of all yardsticks: the quick state, were one of them a slip of the clock
MIN_YARDSTICKS = 5


def slow_limit_s(samples: Sequence[Sample]) -> float | None:
    """Yardstick above which the machine is slow, seconds; None while there are too few."""
    seen = [s.yardstick_s for s in samples if _counts(s)]
    if len(seen) < MIN_YARDSTICKS:
        return None
    return SLOW_RATIO * float(np.percentile(np.array(seen, dtype=np.float64), QUICK_PERCENTILE))


def judged(samples: Sequence[Sample]) -> list[Sample]:
    """The samples, those of a slow machine not steady. Under a power limit the yardstick is slow
    because of the limit, and such samples have references of their own."""
    limit_s = slow_limit_s(samples)
    if limit_s is None:
        return list(samples)
    return [
        replace(s, steady=False) if _counts(s) and (s.yardstick_s or 0.0) > limit_s else s
        for s in samples
    ]


def _counts(sample: Sample) -> bool:
    return sample.yardstick_s is not None and sample.power_limit_watts is None
