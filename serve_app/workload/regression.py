"""One linear equation by statsmodels: how it is solved, what is known of it, and what is refused.

Ordinary least squares without an intercept, unless the residuals grow with the request
(Breusch-Pagan, studentised, p below 0.05), as those of values that span decades do; then weighted
least squares in relative terms: the variance is taken as proportional to the square of the mean.
Standard errors, t, F and intervals are robust against what heteroscedasticity is left (HC3,
MacKinnon and White 1985).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from statsmodels.regression.linear_model import OLS, WLS
from statsmodels.stats.diagnostic import het_breuschpagan
from statsmodels.tools.tools import add_constant

from policies.core.errors import NotFitted
from policies.model.batch import Floats
from policies.model.binned import Ints
from serve_app.profiler.regression import condition_number, r_squared

ROWS_PER_TERM = 5
SETTINGS_PER_TERM = 2
FOLDS = 5
SIGNIFICANCE = 0.05
MAX_CONDITION_NUMBER = 1e4  # beyond, columns are one column
ILL_CONDITIONED = 30.0  # Belsley, Kuh and Welsch (1980), of columns scaled to length 1


_Way = Callable[[Floats, Floats], Any]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Problem:
    """y = x b. `names` and `columns`: of the columns of x; `settings`: a number per row, the same
    for rows that repeat each other; `source`: for error messages."""

    source: str
    quantity: str
    names: Sequence[str]
    columns: Sequence[str]
    x: Floats
    y: Floats
    settings: Ints


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One coefficient: its robust standard error, t, p and 95 % interval; None = not finite, as
    where one row alone decides it."""

    name: str
    column: str
    value: float
    standard_error: float | None
    t: float | None
    p: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Equation:
    """One fitted quantity. `settings`: distinct lengths (and batch), which are held out whole.

    `r_squared` is statsmodels', uncentred as without an intercept, in the fit's own weights, and
    `r_squared_adjusted` likewise; `r_squared_centred`: of the unweighted values about their mean,
    None where these are all one. `breusch_pagan_p`: of the ordinary residuals. Held-out errors are
    |predicted - measured| / measured over rows, 5 folds.
    """

    quantity: str
    method: str
    standard_errors: str
    terms: tuple[Term, ...]
    rows: int
    settings: int
    r_squared: float
    r_squared_adjusted: float
    r_squared_centred: float | None
    f_statistic: float | None
    f_p: float | None
    breusch_pagan_p: float | None
    condition_number: float
    held_out_median_ratio: float
    held_out_p95_ratio: float
    warnings: tuple[str, ...]


def solve(problem: Problem) -> Equation:
    """The fitted equation. NotFitted: too few rows, or columns that cannot be told apart."""
    _check(problem)
    x, y = problem.x, problem.y
    way, breusch_pagan_p = _choose(x, y)
    fitted = way(x, y)
    condition = condition_number(fitted.model.wexog)
    held = _held_out(problem, way)
    terms = _terms(problem, fitted)
    return Equation(
        quantity=problem.quantity,
        method="OLS" if way is _ordinary else "WLS, relative",
        standard_errors="HC3",
        terms=terms,
        rows=len(y),
        settings=len(np.unique(problem.settings)),
        r_squared=float(fitted.rsquared),
        r_squared_adjusted=float(fitted.rsquared_adj),
        r_squared_centred=_finite(r_squared(y, fitted.predict(x))),
        f_statistic=_finite(fitted.fvalue),
        f_p=_finite(fitted.f_pvalue),
        breusch_pagan_p=breusch_pagan_p,
        condition_number=condition,
        held_out_median_ratio=float(np.median(held)),
        held_out_p95_ratio=float(np.percentile(held, 95)),
        warnings=_warnings(condition, terms),
    )


def _check(problem: Problem) -> None:
    x, columns = problem.x, problem.columns
    where = f"{problem.source}: {problem.quantity}"
    terms = x.shape[1]
    distinct = len(np.unique(problem.settings))
    if len(x) < ROWS_PER_TERM * terms or distinct < SETTINGS_PER_TERM * terms:
        raise NotFitted(
            f"{where}: {len(x)} rows of {distinct} distinct lengths (and batch); needed for "
            f"{terms} terms: {ROWS_PER_TERM * terms} rows, {SETTINGS_PER_TERM * terms} distinct"
        )
    for k, name in enumerate(columns):
        if float(np.ptp(x[:, k])) == 0.0:
            raise NotFitted(
                f"{where}: {name} is {x[0, k]:g} in every row, so the terms with it cannot be told "
                "apart from the others; needed: rows in which it differs"
            )
    condition = condition_number(x)
    if not condition <= MAX_CONDITION_NUMBER:
        raise NotFitted(
            f"{where}: {' and '.join(_dependent(problem))} cannot be told apart (condition number "
            f"{condition:.3g}; allowed: {MAX_CONDITION_NUMBER:g}); needed: rows in which they vary "
            "on their own"
        )


def _dependent(problem: Problem) -> list[str]:
    """The columns in the combination that is nearest to nothing."""
    scaled = problem.x / np.linalg.norm(problem.x, axis=0)
    _, _, directions = np.linalg.svd(scaled, full_matrices=False)
    weights = np.abs(directions[-1])
    return [problem.columns[k] for k in np.flatnonzero(weights > 0.1 * weights.max())]


def _ordinary(x: Floats, y: Floats) -> Any:
    return OLS(y, x, hasconst=False).fit(cov_type="HC3", use_t=True)


def _relative(x: Floats, y: Floats) -> Any:
    """Weights 1 / mean^2, the mean from a first fit by the measured values."""
    first = WLS(y, x, weights=y**-2.0, hasconst=False).fit()
    mean = np.clip(first.fittedvalues, 0.5 * y, 2.0 * y)
    return WLS(y, x, weights=mean**-2.0, hasconst=False).fit(cov_type="HC3", use_t=True)


def _choose(x: Floats, y: Floats) -> tuple[_Way, float | None]:
    """How to solve, and the p-value that says so: that equal variances give such residuals."""
    plain = _ordinary(x, y)
    scaled = add_constant(x / np.linalg.norm(x, axis=0))
    p = _finite(het_breuschpagan(plain.resid, scaled)[1])
    return (_relative if p is not None and p < SIGNIFICANCE else _ordinary), p


def _held_out(problem: Problem, way: _Way) -> Floats:
    """|predicted - measured| / measured of each row, fitted without its setting."""
    x, y = problem.x, problem.y
    _, group = np.unique(problem.settings, return_inverse=True)
    groups = int(group.max()) + 1
    fold = np.random.default_rng(0).permutation(groups)[group] % min(FOLDS, groups)
    errors = np.empty(len(y))
    for one in np.unique(fold):
        held = fold == one
        predicted = way(x[~held], y[~held]).predict(x[held])
        errors[held] = np.abs(predicted - y[held]) / y[held]
    return errors


def _terms(problem: Problem, fitted: Any) -> tuple[Term, ...]:
    intervals = fitted.conf_int()
    return tuple(
        Term(
            name=name,
            column=column,
            value=float(fitted.params[k]),
            standard_error=_finite(fitted.bse[k]),
            t=_finite(fitted.tvalues[k]),
            p=_finite(fitted.pvalues[k]),
            low=_finite(intervals[k][0]),
            high=_finite(intervals[k][1]),
        )
        for k, (name, column) in enumerate(zip(problem.names, problem.columns, strict=True))
    )


def _warnings(condition: float, terms: Sequence[Term]) -> tuple[str, ...]:
    found = []
    if condition > ILL_CONDITIONED:
        found.append(
            f"ill-conditioned: condition number {condition:.3g} of the scaled columns is above "
            f"{ILL_CONDITIONED:g}; the terms trade off against each other, trust their sum within "
            "the valid range, not each by itself"
        )
    negative = [term.name for term in terms if term.value < 0.0]
    if negative:
        found.append(f"{', '.join(negative)} below 0: do not use it beyond the valid range")
    return tuple(found)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
