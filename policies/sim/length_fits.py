"""Length distributions from the few figures that papers print of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from policies.core.errors import ConfigError
from policies.sim.arrivals import LengthCdf

_END_Z = 4.0  # one request in 30,000 lies beyond
_POINTS = 161
_NORMAL = NormalDist()


def through_quantiles(quantiles: Mapping[float, float]) -> LengthCdf:
    """The distribution with these quantiles, {share ≤ x: x in tokens}, two or more.

    ln x is linear in the normal quantile z of the share between the points: exactly log-normal for
    two points, and log-normal piece by piece for more. Beyond the first and last point the outer
    pieces go on, up to z = ±4, which is also where shares of 0 and 1 are taken to lie. Lengths
    below 1 count as 1. Raises ConfigError.
    """
    points = sorted((float(share), float(tokens)) for share, tokens in quantiles.items())
    if len(points) < 2 or not all(0 <= share <= 1 for share, _ in points):
        raise ConfigError("length quantiles: expected two or more shares within 0..1")
    if any(not 0 <= tokens < math.inf for _, tokens in points) or any(
        after < before for (_, before), (_, after) in pairwise(points)
    ):
        raise ConfigError("length quantiles: expected finite tokens ≥ 0 that do not descend")
    known_z = np.array([_z(share) for share, _ in points])
    known_log = np.log([max(1.0, tokens) for _, tokens in points])
    z = np.union1d(np.linspace(-_END_Z, _END_Z, _POINTS), known_z)
    log_tokens = np.interp(z, known_z, known_log)
    first = (known_log[1] - known_log[0]) / (known_z[1] - known_z[0])
    last = (known_log[-1] - known_log[-2]) / (known_z[-1] - known_z[-2])
    log_tokens = log_tokens + first * np.minimum(z - known_z[0], 0.0)
    log_tokens = log_tokens + last * np.maximum(z - known_z[-1], 0.0)
    return LengthCdf(
        shares=tuple(_NORMAL.cdf(value) for value in z.tolist()),
        tokens=tuple(np.maximum(1.0, np.exp(log_tokens)).tolist()),
    )


def lognormal(mean: float, median: float) -> LengthCdf:
    """The log-normal distribution with this mean and median in tokens: ln x has the variance
    2 ln(mean / median). Raises ConfigError."""
    if not 1 <= median <= mean < math.inf:
        raise ConfigError(
            f"lengths with mean {mean:g} and median {median:g}: expected 1 ≤ median ≤ mean"
        )
    sigma = math.sqrt(2 * math.log(mean / median))
    return through_quantiles({0.5: median, _NORMAL.cdf(1.0): median * math.exp(sigma)})


def mean_tokens(cdf: LengthCdf) -> float:
    """The mean of a distribution in tokens, before its samples are rounded."""
    shares, tokens = np.array(cdf.shares), np.array(cdf.tokens)
    inner = float(np.diff(shares) @ (tokens[1:] + tokens[:-1]) / 2)
    return inner + float(shares[0] * tokens[0] + (1 - shares[-1]) * tokens[-1])


def _z(share: float) -> float:
    if share <= _NORMAL.cdf(-_END_Z):
        return -_END_Z
    return _END_Z if share >= _NORMAL.cdf(_END_Z) else _NORMAL.inv_cdf(share)
