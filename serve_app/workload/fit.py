"""The request-energy model of one LLM on one device, and the same form for its run time.

    e = a0 tin + a1 tout + a2 tin tout [+ a1b tout / batch]

The form is that of Offline energy-optimal LLM serving (HotCarbon'24), which has no intercept; the
term in brackets is taken in where the batch is known and varies (`policies.model.workload`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policies.core.errors import NotFitted
from policies.model.batch import Floats
from policies.model.binned import Ints
from policies.model.workload import WorkloadModel
from serve_app.workload.observations import Observations
from serve_app.workload.regression import Equation, Problem, solve

COLUMNS = ("prompt_tokens", "output_tokens", "prompt_tokens*output_tokens", "output_tokens/batch")
NAMES = ("alpha0", "alpha1", "alpha2", "alpha1b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """The least and the largest value that the fit has seen."""

    least: float
    most: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadFit:
    """`energy` in J, `run_time` in s (None: no run times); both hold within `valid` only. `batch`:
    where the batch is from, or why there is no term for it."""

    source: str
    model: str
    device: str
    energy: Equation
    run_time: Equation | None
    workload: WorkloadModel
    valid: dict[str, Range]
    batch: str
    left_out: dict[str, int]
    unreadable: int


def fit_workload(found: Observations) -> WorkloadFit:
    """Fit energy and run time. NotFitted: too few rows, or columns that do not tell apart."""
    batch, batch_note = _batch_of(found)
    energy = _equation("joules", found, found.joules, batch)
    timed = not bool(np.isnan(found.run_time_s).all())
    values = [term.value for term in energy.terms]
    ranges = {"prompt_tokens": found.prompt_tokens, "output_tokens": found.output_tokens}
    if found.batch is not None:
        ranges["batch"] = found.batch
    return WorkloadFit(
        source=found.source,
        model=found.model,
        device=found.device,
        energy=energy,
        run_time=_equation("run_time_s", found, found.run_time_s, batch) if timed else None,
        workload=WorkloadModel(
            alpha0_joules_per_prompt_token=values[0],
            alpha1_joules_per_output_token=values[1],
            alpha2_joules_per_token_squared=values[2],
            alpha1b_shared_joules_per_output_token=values[3] if batch is not None else 0.0,
        ),
        valid={k: Range(least=float(v.min()), most=float(v.max())) for k, v in ranges.items()},
        batch=batch_note,
        left_out=dict(found.left_out),
        unreadable=found.unreadable,
    )


def _batch_of(found: Observations) -> tuple[Floats | None, str]:
    """The batch to fit by, and a sentence about it."""
    if found.batch is None:
        return None, "the batch is not known: no 1/batch term, valid at the batch of these rows"
    least = float(found.batch.min())
    if float(found.batch.max()) == least:
        return None, f"the batch is {least:g} in every row: no 1/batch term, valid at that batch"
    return found.batch, f"batch from {found.batch_from}"


def _equation(quantity: str, found: Observations, y: Floats, batch: Floats | None) -> Equation:
    known = ~np.isnan(y)
    if not known.any():
        reasons = "; ".join(f"{count} {why}" for why, count in found.left_out.items())
        raise NotFitted(f"{found.source}: {quantity} is known of no request ({reasons})")
    x = _design(found, batch)
    return solve(
        Problem(
            source=found.source,
            quantity=quantity,
            names=NAMES[: x.shape[1]],
            columns=COLUMNS[: x.shape[1]],
            x=x[known],
            y=y[known],
            settings=_settings(found, batch)[known],
        )
    )


def _design(found: Observations, batch: Floats | None) -> Floats:
    columns = [
        found.prompt_tokens,
        found.output_tokens,
        found.prompt_tokens * found.output_tokens,
    ]
    if batch is not None:
        columns.append(found.output_tokens / batch)
    return np.column_stack(columns)


def _settings(found: Observations, batch: Floats | None) -> Ints:
    """A number per row, the same for the same lengths (and batch, to a whole number)."""
    parts = [found.prompt_tokens, found.output_tokens]
    if batch is not None:
        parts.append(np.round(batch))
    _, index = np.unique(np.column_stack(parts), axis=0, return_inverse=True)
    return np.asarray(index.ravel(), dtype=np.int64)
