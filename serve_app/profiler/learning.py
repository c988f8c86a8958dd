"""How fast a sweep learns: fits of a part of its points, judged on the points not among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from serve_app.profiler.equation import BASE_TERMS, columns, fit_best
from serve_app.profiler.order import informative_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serve_app.profiler.regression import Floats
    from serve_app.profiler.samples import Sample

SHARES = (1 / 3, 2 / 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """The fit of the first `points` points; its error is the median over all the others."""

    points: int
    unseen_points: int
    unseen_median_ratio: float


def learning_curve(samples: Sequence[Sample], y: Floats) -> tuple[Learned, ...]:
    """Fits of a third and two thirds of the points, the most informative ones. Shares with too few
    points to fit are left out."""
    names = informative_order(samples)
    labels = np.array([sample.point for sample in samples])
    data = columns(samples)
    found = []
    for share in SHARES:
        first = names[: round(share * len(names))]
        seen = np.isin(labels, first)
        if len(first) < 2 * BASE_TERMS or len(first) == len(names):
            continue
        fitted = fit_best(data[seen], y[seen], list(labels[seen]))
        errors = [
            abs(float(np.median(fitted.predict(data[labels == name]) / y[labels == name])) - 1.0)
            for name in names
            if name not in first
        ]
        found.append(
            Learned(
                points=len(first),
                unseen_points=len(errors),
                unseen_median_ratio=float(np.median(errors)),
            )
        )
    return tuple(found)
