"""Non-negative linear regression of relative error, robust against outliers; errors by resampling.

    minimise  sum_i rho((x_i b - y_i) / y_i)   over b >= 0

by iteratively reweighted `scipy.optimize.nnls` (soft-L1 weights), after which rows beyond 5 MAD are
trimmed and the rest is solved once more. Active bounds are exact zeros. Pure: numpy and scipy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TRIM_MADS = 5.0
MAX_TRIMMED_RATIO = 0.2  # beyond that the rest is no longer "the data without its outliers"
MIN_SCALE_RATIO = 0.01  # relative error that is never an outlier, whatever the MAD
_ITERATIONS = 20


@dataclass(frozen=True, kw_only=True)
class Regression:
    """`coefficients` >= 0, one per column; `kept`: which rows were not trimmed."""

    coefficients: Floats
    kept: Bools

    def predict(self, x: Floats) -> Floats:
        """Return x b for each row of x."""
        return np.asarray(x @ self.coefficients, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """|predicted - measured| / measured on rows whose group the fit had not seen.

    `by_row`: the median over repeats, one per row; `median` and `p95`: over all rows and repeats.
    """

    by_row: Floats
    median: float
    p95: float


def regress(x: Floats, y: Floats) -> Regression:
    """The robust non-negative fit. All y > 0; x has one row per y."""
    relative = x / y[:, None]
    weights = np.ones(len(y))
    coefficients = _solve(relative, weights)
    for _ in range(_ITERATIONS):
        residuals = relative @ coefficients - 1.0
        weights = (1.0 + (residuals / _scale(residuals)) ** 2) ** -0.25
        previous, coefficients = coefficients, _solve(relative, weights)
        if np.allclose(previous, coefficients, rtol=1e-5, atol=0.0):
            break
    kept = _untrimmed(relative @ coefficients - 1.0)
    return Regression(coefficients=_solve(relative[kept], weights[kept]), kept=kept)


def r_squared(y: Floats, predicted: Floats) -> float:
    """1 - residual / total sum of squares (unweighted); NaN where y is constant."""
    total = float(((y - y.mean()) ** 2).sum())
    return 1.0 - float(((y - predicted) ** 2).sum()) / total if total > 0.0 else float("nan")


def condition_number(x: Floats) -> float:
    """Condition number of x with columns scaled to length 1; inf for a zero or dependent column."""
    lengths = np.linalg.norm(x, axis=0)
    if not np.all(lengths > 0.0):
        return float("inf")
    return float(np.linalg.cond(x / lengths))


def held_out(  # noqa: PLR0913  (the three keywords are the design of the resampling)
    x: Floats, y: Floats, groups: Sequence[str], *, folds: int = 5, repeats: int = 5, seed: int = 0
) -> HeldOut:
    """Repeated K-fold error; all rows of a group are held out together (a repeat of a point is not
    new evidence). Folds are drawn from `seed`; never more folds than groups."""
    rng = np.random.default_rng(seed)
    labels = np.asarray(groups)
    errors = np.full((repeats, len(y)), np.nan)
    for repeat in range(repeats):
        for held in _folds(labels, folds, rng):
            fit = regress(x[~held], y[~held])
            errors[repeat, held] = np.abs(fit.predict(x[held]) - y[held]) / y[held]
    return HeldOut(
        by_row=np.asarray(np.median(errors, axis=0)),
        median=float(np.median(errors)),
        p95=float(np.percentile(errors, 95)),
    )


def standard_errors(
    x: Floats, y: Floats, groups: Sequence[str], *, resamples: int = 200, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """(standard error, 2.5 %, 97.5 %) per coefficient by a bootstrap over groups.

    Resampling whole groups keeps rows of one point together (Cameron et al. 2008, pairs cluster
    bootstrap); it also holds at an active bound, where the linear-model formula does not.
    """
    rng = np.random.default_rng(seed)
    labels = np.asarray(groups)
    members = [np.flatnonzero(labels == group) for group in dict.fromkeys(groups)]
    drawn = np.empty((resamples, x.shape[1]))
    for row in range(resamples):
        rows = np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))])
        drawn[row] = regress(x[rows], y[rows]).coefficients
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return drawn.std(axis=0, ddof=1), low, high


def _solve(relative: Floats, weights: Floats) -> Floats:
    """Weighted NNLS on columns scaled to length 1 (they differ by up to 1e6)."""
    weighted = relative * weights[:, None]
    lengths = np.linalg.norm(weighted, axis=0)
    lengths[lengths == 0.0] = 1.0
    solution, _ = nnls(weighted / lengths, weights)
    return np.asarray(solution / lengths, dtype=np.float64)


def _scale(residuals: Floats) -> float:
    """1.4826 MAD about zero: the size of an ordinary relative error."""
    return max(float(1.4826 * np.median(np.abs(residuals))), MIN_SCALE_RATIO)


def _untrimmed(residuals: Floats) -> Bools:
    """Rows within 5 MAD; at most a fifth of the rows is left out, the worst first."""
    size = np.abs(residuals)
    limit = TRIM_MADS * _scale(residuals)
    allowed = int(MAX_TRIMMED_RATIO * len(size))
    if allowed < int((size > limit).sum()):
        limit = float(np.sort(size)[len(size) - allowed - 1])
    return np.asarray(size <= limit, dtype=np.bool_)


def _folds(labels: NDArray[np.str_], folds: int, rng: np.random.Generator) -> Iterator[Bools]:
    names = rng.permutation(np.unique(labels))
    for part in np.array_split(names, min(folds, len(names))):
        yield np.isin(labels, part)
