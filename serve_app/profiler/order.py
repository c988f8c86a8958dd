"""Which run comes next: the most informative one, until the model is known well enough. Pure.

For a linear model with relative noise sigma the variance of the prediction at x is sigma^2 v(x),
v(x) = x' (X'X)^-1 x with every row divided by its step time. The run with the largest v adds most
to det X'X (Wynn, 1970: the sequential D-optimal design), and sigma v^1/2 is how well the model is
known where it is known least (G-optimality: the same design in the limit, Kiefer and Wolfowitz,
1960). That design repeats the extremes and would never see where the equation itself is wrong, so
every point is measured once before any is repeated, and the model is known well enough only when
points that a fit has not seen say so too. A repeat is worth what it takes off the variance of its
point's mean, sigma^2 (1/k - 1/(k + 1)), per second that it takes: k goes as 1 / cost^1/2 (Neyman,
1934), and cheap points are seen in more of the states that a shared machine goes through. One of
the nearly best is drawn at random, so that a drift of the machine does not look like a coefficient.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from serve_app.profiler import regression
from serve_app.profiler.equation import BASE_TERMS, columns, fit_best
from serve_app.profiler.samples import Kind, Phase, unlimited
from serve_app.profiler.yardstick import judged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from serve_app.profiler.regression import Floats
    from serve_app.profiler.samples import Sample
    from serve_app.profiler.sweep import Point, Run

GOOD_ENOUGH_RATIO = 0.03  # 95 % half-width of the step time, everywhere in the sweep
HELD_OUT_MEDIAN_RATIO = 0.08  # and on points that the fit has not seen the median error,
HELD_OUT_P95_RATIO = 0.15  # and what 95 % of them stay within
NEARLY_BEST_RATIO = 0.9
NORMAL_95 = 1.96
_KNOTS = (16.0, 128.0)  # wherever the knee is, it is told apart from a line by points around these
_GROWN_TOKENS = 80  # generated, on average, by the time that a decode point is measured
_PRIOR = 1e-6  # of a row's weight: keeps the first inversions defined
_STEP_FLOOR_TOKENS = 32.0


class RunOrder:
    """Picks from `runs`, of which each is given with the seconds it takes, and uses them up. Idle
    points come first: energy rests on them."""

    def __init__(self, runs: Mapping[Run, float], seed: int) -> None:
        self._left = list(runs)
        self._seconds = runs
        self._points = list(dict.fromkeys(r.point for r in runs if r.point.kind is not Kind.IDLE))
        self._random = random.Random(seed)  # noqa: S311  (an order, not a secret)

    def take(self, samples: Sequence[Sample]) -> Run | None:
        """The next run, given what is measured; None when none is left."""
        if not self._left:
            return None
        idle = next((r for r in self._left if r.point.kind is Kind.IDLE and r.repeat == 1), None)
        if idle is None and self._left[0].repeat == 1:
            run = self._most_informative(samples)
        else:
            run = idle or self._most_worth_repeating(samples)
        self._left.remove(run)
        return run

    def half_width_ratio(self, samples: Sequence[Sample]) -> float | None:
        """95 % half-width of the predicted step time where it is largest, relative. None while
        there are too few points to know the noise."""
        rows = _measured(samples)
        x, times = _columns(rows)
        if len({s.point for s in rows}) < 2 * x.shape[1]:
            return None
        fitted = regression.regress(x, times)
        errors = np.abs(fitted.predict(x) - times) / times
        sigma = max(float(1.4826 * np.median(errors)), regression.MIN_SCALE_RATIO)
        return NORMAL_95 * sigma * float(np.sqrt(self._variances(samples).max()))

    def meets_unseen_points(self, samples: Sequence[Sample]) -> bool:
        """Whether the errors on points that a fit has not seen are small."""
        rows = _measured(samples)
        times = np.array([s.step_time_s for s in rows], dtype=np.float64)
        points = [s.point for s in rows]
        found = regression.held_out(columns(rows), times, points, repeats=2, fit=fit_best)
        return found.median <= HELD_OUT_MEDIAN_RATIO and found.p95 <= HELD_OUT_P95_RATIO

    def _most_informative(self, samples: Sequence[Sample]) -> Run:
        variances = dict(zip(self._points, self._variances(samples), strict=True))
        return self._nearly_best(
            {run: variances[run.point] for run in self._left if run.repeat == 1}
        )

    def _most_worth_repeating(self, samples: Sequence[Sample]) -> Run:
        times = Counter(
            s.point for s in judged(unlimited(samples)) if s.phase is Phase.STEADY and s.steady
        )
        worth = {}
        for run in {run.point: run for run in reversed(self._left)}.values():
            seen = max(0.5, times[run.point.name])
            worth[run] = (1.0 / seen - 1.0 / (seen + 1.0)) / self._seconds[run]
        return self._nearly_best(worth)

    def _nearly_best(self, scores: Mapping[Run, float]) -> Run:
        least = NEARLY_BEST_RATIO * max(scores.values())
        return self._random.choice([run for run, score in scores.items() if score >= least])

    def _variances(self, samples: Sequence[Sample]) -> Floats:
        """v(x) of each point."""
        rows = _measured(samples)
        wanted = _rows([_features(point) for point in self._points])
        times = wanted[:, 1] + wanted[:, 3] + _STEP_FLOOR_TOKENS
        information = np.zeros((wanted.shape[1], wanted.shape[1]))
        if rows:
            x, seconds = _columns(rows)
            relative = x / seconds[:, None]
            information = relative.T @ relative
            if len(rows) >= 2 * BASE_TERMS:
                times = np.maximum(regression.regress(x, seconds).predict(wanted), 1e-9)
            else:
                crude = x[:, 1] + x[:, 3] + _STEP_FLOOR_TOKENS
                times = times * float(np.median(seconds / crude))
        relative = wanted / times[:, None]
        prior = _PRIOR * np.diag((relative**2).sum(axis=0) + 1e-300)
        inverse = np.linalg.pinv(information + prior)
        return np.asarray(np.einsum("ij,jk,ik->i", relative, inverse, relative))


def informative_order(samples: Sequence[Sample]) -> list[str]:
    """The points of these samples, the one that tells most about the step time first: the order of
    a sweep that knew the step times already and repeated nothing."""
    labels = np.array([s.point for s in samples])
    x, times = _columns(samples)
    names = list(dict.fromkeys(labels))
    left = {name: np.median((x / times[:, None])[labels == name], axis=0) for name in names}
    information = _PRIOR * np.diag(sum(row**2 for row in left.values()) + 1e-300)
    order: list[str] = []
    while left:
        inverse = np.linalg.pinv(information)
        best = max(left, key=lambda name: float(left[name] @ inverse @ left[name]))
        row = left.pop(best)
        information = information + np.outer(row, row)
        order.append(str(best))
    return order


def _measured(samples: Sequence[Sample]) -> list[Sample]:
    return [
        s
        for s in judged(unlimited(samples))
        if s.kind is not Kind.IDLE and s.phase is Phase.STEADY and s.steady
    ]


def _features(point: Point) -> tuple[float, float, float, float]:
    """num_seqs, kv_tokens, prefill_tokens, attended_pairs that a run of the point will show."""
    prompt = float(point.prompt_tokens)
    kv = point.num_seqs * (point.context_tokens + _GROWN_TOKENS) + prompt
    return point.num_seqs + float(prompt > 0.0), float(kv), prompt, 0.5 * prompt * prompt


def _columns(samples: Sequence[Sample]) -> tuple[Floats, Floats]:
    rows = [
        (s.num_seqs or 0.0, s.kv_tokens or 0.0, s.prefill_tokens or 0.0, s.attended_pairs or 0.0)
        for s in samples
    ]
    return _rows(rows), np.array([s.step_time_s for s in samples], dtype=np.float64)


def _rows(features: Sequence[tuple[float, float, float, float]]) -> Floats:
    base = np.array(features, dtype=np.float64).reshape(-1, 4)
    tokens = base[:, 0] + base[:, 2]
    hinges = [np.maximum(0.0, tokens - knot) for knot in _KNOTS]
    return np.column_stack([np.ones(len(base)), base, *hinges])
