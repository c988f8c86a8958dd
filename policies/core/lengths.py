"""Request lengths as twelve numbers: the mean length between fixed quantiles.

What an arrival waits for depends on the long prompts before it, not on the mean alone, and whether
a request can meet a target at all depends on its own length. Twelve means carry both, are floats
that a replica can report, and of several replicas are averaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 0.99, 1.0)
WEIGHTS = tuple(high - low for low, high in pairwise(EDGES))


def bins_of(values: Sequence[float] | NDArray[Any]) -> tuple[float, ...] | None:
    """The mean of `values` in each bin; None when empty. Ascending; a bin that holds no whole value
    takes the quantile in its middle, so that few values give as many numbers."""
    found = np.sort(np.asarray(values, dtype=np.float64))
    count = len(found)
    if not count:
        return None
    # The integral of the quantile function over each bin, the values as steps of equal width.
    sums = np.concatenate(([0.0], np.cumsum(found)))
    at = np.array(EDGES) * count
    whole = np.minimum(at.astype(np.int64), count - 1)
    integral = sums[whole] + (at - whole) * found[whole]
    means = np.diff(integral) / (np.array(WEIGHTS) * count)
    return tuple(float(one) for one in np.maximum.accumulate(means))


def mean_of(bins: Sequence[float]) -> float:
    """The mean length."""
    return sum(weight * one for weight, one in zip(WEIGHTS, bins, strict=True))


def mixed(parts: Iterable[tuple[float, Sequence[float]]]) -> tuple[float, ...] | None:
    """Bin by bin the weighted mean: what replicas that serve the same requests see together. None
    where no weight is above 0."""
    known = [(weight, bins) for weight, bins in parts if weight > 0.0 and len(bins) == len(WEIGHTS)]
    if not known:
        return None
    weights = np.array([weight for weight, _ in known])
    sums = weights @ np.array([bins for _, bins in known], dtype=np.float64)
    return tuple((sums / weights.sum()).tolist())
