"""One fitted equation of a step, in seconds or joules: which terms it needs, their errors. Pure.

    y = base + per_seq n + per_kv kv + per_prefill prefill
        [+ per_pair pairs] [+ beyond max(0, n + prefill - knee)]

The two terms in brackets are taken in only where they lower the error on points that the fit has
not seen by a tenth; that choice is made anew in every fold, so the error that is reported contains
it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from policies.core.errors import NotFitted
from serve_app.profiler import regression
from serve_app.profiler.regression import Floats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serve_app.profiler.regression import HeldOut, Regression
    from serve_app.profiler.samples import Sample

MAX_CONDITION_NUMBER = 1e4
WORTH_A_TERM_RATIO = 0.9  # of the held-out error: a term that does not get it below is left out
WORTH_A_TERM = 0.002  # nor one that gains less than this share of the step
_ROUGH = 2  # iterations: enough to tell forms apart
BASE_TERMS = 4
_PAIR_SPREAD = 16.0  # attention shows only where prompts differ by more than 4 in length
_WORST = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """Which optional terms an equation has. `knee`: tokens per step."""

    knee: float | None = None
    pairs: bool = False

    @property
    def size(self) -> int:
        """How many coefficients there are."""
        return BASE_TERMS + self.pairs + (self.knee is not None)


@dataclass(frozen=True, kw_only=True)
class Term:
    """One coefficient with its bootstrap standard error and 95 % interval."""

    name: str
    value: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class WorstPoint:
    """A point that the model misses most when it is held out: medians over its repeats."""

    point: str
    measured: float
    predicted: float
    held_out_error_ratio: float


@dataclass(frozen=True, kw_only=True)
class Equation:
    """One fitted equation. `rows`: samples used; `trimmed`: those left out as outliers (they still
    count in the held-out errors); `r_squared` over the rows kept; `errors`: point -> held-out."""

    quantity: str
    terms: tuple[Term, ...]
    knee_tokens: float | None
    rows: int
    points: int
    trimmed: tuple[str, ...]
    r_squared: float
    condition_number: float
    held_out_median_ratio: float
    held_out_p95_ratio: float
    worst: tuple[WorstPoint, ...]
    errors: dict[str, float]

    def value(self, name: str) -> float:
        """The coefficient of that name; 0 where the equation does without."""
        return next((term.value for term in self.terms if term.name == name), 0.0)


def equation(quantity: str, names: Sequence[str], samples: Sequence[Sample], y: Floats) -> Equation:
    """Fit `y` (all > 0, one per sample). `names`: of all six coefficients. NotFitted when the
    samples are too few or do not tell the columns apart."""
    if len(samples) < 2 * BASE_TERMS:
        reasons = sorted({s.reason for s in samples if s.reason})
        raise NotFitted(
            f"{quantity}: {len(samples)} metered samples; needed: {2 * BASE_TERMS}"
            + (f" ({'; '.join(reasons)})" if reasons else "")
        )
    data = columns(samples)
    condition = regression.condition_number(data[:, :BASE_TERMS])
    if condition > MAX_CONDITION_NUMBER:
        raise NotFitted(
            f"{quantity}: the columns 1, num_seqs, kv_tokens, prefill_tokens cannot be told apart "
            f"(condition number {condition:.3g}; allowed: {MAX_CONDITION_NUMBER:g})"
        )
    groups = [sample.point for sample in samples]
    form = choose(data, y, groups)
    x = matrix(data, form)
    solved = regression.regress(x, y)
    error, low, high = regression.standard_errors(x, y, groups)
    held = regression.held_out(data, y, groups, repeats=2, fit=fit_best)
    pair, beyond = names[BASE_TERMS:]
    chosen = [*names[:BASE_TERMS]]
    chosen += [pair] * form.pairs + [beyond] * (form.knee is not None)
    return Equation(
        quantity=quantity,
        terms=tuple(
            Term(name=name, value=float(v), standard_error=float(e), low=float(lo), high=float(hi))
            for name, v, e, lo, hi in zip(
                chosen, solved.coefficients, error, low, high, strict=True
            )
        ),
        knee_tokens=form.knee,
        rows=len(samples),
        points=len(set(groups)),
        trimmed=tuple(
            f"{s.point} #{s.repeat}" for s, k in zip(samples, solved.kept, strict=True) if not k
        ),
        r_squared=regression.r_squared(y[solved.kept], solved.predict(x)[solved.kept]),
        condition_number=condition,
        held_out_median_ratio=held.median,
        held_out_p95_ratio=held.p95,
        worst=_worst(groups, y, solved.predict(x), held),
        errors=held.by_group,
    )


def columns(samples: Sequence[Sample]) -> Floats:
    """1, num_seqs, kv_tokens, prefill_tokens, attended_pairs of each sample."""
    rows = [
        (1.0, s.num_seqs, s.kv_tokens, s.prefill_tokens, s.attended_pairs or 0.0) for s in samples
    ]
    return np.array(rows, dtype=np.float64)


def matrix(data: Floats, form: Form) -> Floats:
    """The columns that the form needs, the knee's among them."""
    parts = [data[:, :BASE_TERMS]]
    if form.pairs:
        parts.append(data[:, 4:5])
    if form.knee is not None:
        parts.append(np.maximum(0.0, data[:, 1:2] + data[:, 3:4] - form.knee))
    return np.hstack(parts)


def choose(data: Floats, y: Floats, groups: Sequence[str]) -> Form:
    """The form with the smallest held-out error, if that is worth its terms: first the knee, then
    attention beside it."""
    best = Form()
    least = _score(data, y, groups, best)
    for forms in (_with_knee, _with_pairs):
        limit = min(WORTH_A_TERM_RATIO * least, least - WORTH_A_TERM)
        for form in forms(data, best):
            score = _score(data, y, groups, form)
            if score < limit and _sound(data, y, form):
                best, least, limit = form, score, score
    return best


def _with_knee(data: Floats, form: Form) -> list[Form]:
    return [replace(form, knee=knee) for knee in _knees(data)]


def _with_pairs(data: Floats, form: Form) -> list[Form]:
    return [replace(form, pairs=True)] if _spread(data) else []


def fit_best(data: Floats, y: Floats, groups: Sequence[str]) -> _Fitted:
    """Choose the form and fit it: what has to be repeated in every fold."""
    form = choose(data, y, groups)
    return _Fitted(form=form, solved=regression.regress(matrix(data, form), y))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fitted:
    form: Form
    solved: Regression

    def predict(self, data: Floats) -> Floats:
        return self.solved.predict(matrix(data, self.form))


def _score(data: Floats, y: Floats, groups: Sequence[str], form: Form) -> float:
    """Mean over points of the held-out error."""

    def fit(data: Floats, y: Floats, _: Sequence[str]) -> _Fitted:
        solved = regression.regress(matrix(data, form), y, iterations=_ROUGH)
        return _Fitted(form=form, solved=solved)

    held = regression.held_out(data, y, groups, folds=4, repeats=1, fit=fit)
    return float(np.mean(list(held.by_group.values())))


def _sound(data: Floats, y: Floats, form: Form) -> bool:
    """Whether a step's own cost outweighs the knee: else a larger batch would cost more a token."""
    if form.knee is None:
        return True
    solved = regression.regress(matrix(data, form), y).coefficients
    return float(solved[-1]) * form.knee <= float(solved[0])


def _knees(data: Floats) -> list[float]:
    """Powers of two with at least two different sizes of step on either side."""
    tokens = np.unique(np.round(data[:, 1] + data[:, 3]))
    if len(tokens) < BASE_TERMS:
        return []
    low, high = float(tokens[1]), float(tokens[-2])
    return [float(1 << k) for k in range(1, 14) if low <= 1 << k < high]


def _spread(data: Floats) -> bool:
    pairs = data[:, 4][data[:, 4] > 0.0]
    return len(pairs) > 0 and float(pairs.max()) >= _PAIR_SPREAD * float(pairs.min())


def _worst(
    groups: Sequence[str], y: Floats, predicted: Floats, held: HeldOut
) -> tuple[WorstPoint, ...]:
    labels = np.asarray(groups)
    order = sorted(held.by_group, key=lambda name: -held.by_group[name])[:_WORST]
    return tuple(
        WorstPoint(
            point=name,
            measured=float(np.median(y[labels == name])),
            predicted=float(np.median(predicted[labels == name])),
            held_out_error_ratio=held.by_group[name],
        )
        for name in order
    )
