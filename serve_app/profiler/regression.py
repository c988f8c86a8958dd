"""Non-negative linear regression of relative error, robust against outliers; errors by resampling.

    minimise  sum_i rho((x_i b - y_i) / y_i)   over b >= 0

by iteratively reweighted `scipy.optimize.nnls` (soft-L1 weights), after which rows beyond 5 MAD are
trimmed and the rest is solved once more. Active bounds are exact zeros. Pure: numpy and scipy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TRIM_MADS = 5.0
MAX_TRIMMED_RATIO = 0.2  # beyond that the rest is no longer "the data without its outliers"
MIN_SCALE_RATIO = 0.01  # relative error that is never an outlier, whatever the MAD
_CONVERGED_RATIO = 1e-4  # of what is predicted


@dataclass(frozen=True, kw_only=True)
class Regression:
    """`coefficients` >= 0, one per column; `kept`: which rows were not trimmed."""

    coefficients: Floats
    kept: Bools

    def predict(self, x: Floats) -> Floats:
        """Return x b for each row of x."""
        return np.asarray(x @ self.coefficients, dtype=np.float64)


class Fit(Protocol):
    """Anything that was fitted and predicts."""

    def predict(self, x: Floats, /) -> Floats: ...


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """|predicted - measured| / measured of points that the fit had not seen, each the median over
    its rows. `by_group`: the median over repetitions; `median`, `p95`: over points and repetitions.
    """

    by_group: dict[str, float]
    median: float
    p95: float


def regress(x: Floats, y: Floats, *, iterations: int = 20) -> Regression:
    """The robust non-negative fit. All y > 0; x has one row per y."""
    relative = x / y[:, None]
    weights = np.ones(len(y))
    residuals = relative @ _solve(relative, weights) - 1.0
    for _ in range(iterations):
        weights = (1.0 + (residuals / _scale(residuals)) ** 2) ** -0.25
        previous, residuals = residuals, relative @ _solve(relative, weights) - 1.0
        if float(np.abs(residuals - previous).max()) <= _CONVERGED_RATIO:
            break
    kept = _untrimmed(residuals)
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


def held_out(  # noqa: PLR0913  (the keywords are the design of the resampling)
    x: Floats,
    y: Floats,
    groups: Sequence[str],
    *,
    folds: int = 5,
    repeats: int = 3,
    seed: int = 0,
    fit: Callable[[Floats, Floats, Sequence[str]], Fit] | None = None,
) -> HeldOut:
    """Repeated K-fold error; all rows of a group are held out together (a repeat of a point is not
    new evidence). Folds are drawn from `seed`; never more folds than groups."""
    fit = fit or _regress
    rng = np.random.default_rng(seed)
    labels = np.asarray(groups)
    names = np.unique(labels)
    errors = np.full((repeats, len(names)), np.nan)
    for repeat in range(repeats):
        for held in _folds(names, folds, rng):
            rows = np.isin(labels, names[held])
            fitted = fit(x[~rows], y[~rows], [str(name) for name in labels[~rows]])
            for k in np.flatnonzero(held):
                mine = labels == names[k]
                measured = float(np.median(y[mine]))
                predicted = float(np.median(fitted.predict(x[mine])))
                errors[repeat, k] = abs(predicted - measured) / measured
    by_group = np.median(errors, axis=0)
    return HeldOut(
        by_group={str(name): float(e) for name, e in zip(names, by_group, strict=True)},
        median=float(np.median(errors)),
        p95=float(np.percentile(errors, 95)),
    )


def _regress(x: Floats, y: Floats, _: Sequence[str]) -> Regression:
    return regress(x, y)


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
        drawn[row] = regress(x[rows], y[rows], iterations=3).coefficients
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


def _folds(names: NDArray[np.str_], folds: int, rng: np.random.Generator) -> Iterator[Bools]:
    order = rng.permutation(len(names))
    for part in np.array_split(order, min(folds, len(names))):
        held = np.zeros(len(names), dtype=np.bool_)
        held[part] = True
        yield held
