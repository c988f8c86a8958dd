"""The energy of a trace three ways: naive from FLOPs and TDP, binned by a profile, and measured.

The method, its source and what differs from it: `policies.model.binned`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from policies.core.errors import ConfigError, OutOfRange
from policies.model.batch import Floats
from policies.model.binned import (
    Batches,
    Bin,
    Bools,
    NaiveEstimate,
    Requests,
    bin_joules,
    bin_requests,
    fixed_batches,
    little_batches,
    within_range,
)
from policies.model.fitted import FittedModel
from serve_app.workload.source import REQUEST_LOG, Workload

BY_OPTION = "--batch, the same for every request"
BY_LITTLE = "Little's law, from the trace's own arrival rate minute by minute and the profile"


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyQuestion:
    """What to compare; None = not asked for. `batch` instead of Little's law needs a profile;
    `measured_joules` is what a meter gave for the whole trace."""

    profile: FittedModel | None = None
    batch: float | None = None
    naive: tuple[NaiveEstimate, ...] = ()
    measured_joules: float | None = None

    @property
    def asks(self) -> bool:
        """Whether anything is asked for."""
        return self.profile is not None or bool(self.naive) or self.measured_joules is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Joules of the compared requests; `error_ratio` = estimate / measured - 1."""

    name: str
    joules: float
    joules_per_request: float
    error_ratio: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BinEnergy:
    """A bin of the compared requests, and its joules at its mean lengths and at its upper ones."""

    bin: Bin
    joules: float
    joules_at_edges: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All figures are of the same `requests` and `tokens`; `left_out` says how many others there
    are, by why. `saturated`: requests of the whole trace that arrived while more came than one
    replica completes."""

    profile: str | None
    batch_from: str | None
    requests: int
    tokens: int
    left_out: dict[str, int]
    saturated: int
    bins: tuple[BinEnergy, ...]
    estimates: tuple[Estimate, ...]
    measured_joules: float | None
    measured_from: str | None


def compare(workload: Workload, question: EnergyQuestion) -> Comparison | None:
    """The estimates beside what was measured; None where nothing was asked for or measured.

    ConfigError: the trace holds no lengths; OutOfRange: no request lies within the profile's range.
    """
    requests = workload.requests
    if requests is None:
        if question.asks:
            raise ConfigError(
                f"{workload.source}: holds no lengths of requests, so no energy can be estimated "
                "or compared; give a trace of requests"
            )
        return None
    chosen = np.ones(len(requests), dtype=np.bool_)
    left_out: Counter[str] = Counter()
    if question.profile is not None:
        chosen, reasons = within_range(question.profile.valid, requests)
        left_out.update(reasons)
        if not chosen.any():
            raise OutOfRange(
                f"profile {question.profile.name}: none of the {len(requests)} requests lies "
                f"within its range: {', '.join(f'{n} {why}' for why, n in reasons.items())}"
            )
    measured, measured_from = question.measured_joules, "--measured-joules"
    metered = ~np.isnan(requests.joules)
    if measured is None and (chosen & metered).any():
        left_out.update({"without measured energy": int((chosen & ~metered).sum())})
        chosen = chosen & metered
        measured, measured_from = float(requests.joules[chosen].sum()), "the request log"
    if measured is None and not question.asks:
        return None
    return _compared(
        _Compared(
            workload=workload,
            question=question,
            all_requests=requests,
            chosen=chosen,
            left_out=dict(+left_out),
            measured_joules=measured,
            measured_from=None if measured is None else measured_from,
        )
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Compared:
    workload: Workload
    question: EnergyQuestion
    all_requests: Requests
    chosen: Bools
    left_out: dict[str, int]
    measured_joules: float | None
    measured_from: str | None

    def estimate(self, name: str, joules: float) -> Estimate:
        measured = self.measured_joules
        return Estimate(
            name=name,
            joules=joules,
            joules_per_request=joules / int(self.chosen.sum()),
            error_ratio=joules / measured - 1.0 if measured else None,
        )


def _compared(found: _Compared) -> Comparison:
    requests = found.all_requests.where(found.chosen)
    tokens = int(requests.prompt_tokens.sum() + requests.output_tokens.sum())
    estimates = [
        found.estimate(_naive_name(naive), naive.joules(tokens)) for naive in found.question.naive
    ]
    profile = found.question.profile
    bins: tuple[BinEnergy, ...] = ()
    saturated = 0
    if profile is not None:
        batches = _batches(profile, found)
        saturated = batches.saturated
        bins = _bins(profile, requests, batches.by_request[found.chosen])
        estimates += _binned(profile, found, bins, batches.idle_s)
    return Comparison(
        profile=None if profile is None else profile.name,
        batch_from=None if profile is None else BY_OPTION if found.question.batch else BY_LITTLE,
        requests=len(requests),
        tokens=tokens,
        left_out=found.left_out,
        saturated=saturated,
        bins=bins,
        estimates=tuple(estimates),
        measured_joules=found.measured_joules,
        measured_from=found.measured_from,
    )


def _batches(profile: FittedModel, found: _Compared) -> Batches:
    if found.question.batch is not None:
        return fixed_batches(profile.valid, found.all_requests, found.question.batch)
    # Those that are not compared load the engine too.
    return little_batches(profile.latency, found.all_requests, profile.valid.max_num_seqs)


def _bins(profile: FittedModel, requests: Requests, batches: Floats) -> tuple[BinEnergy, ...]:
    return tuple(
        BinEnergy(
            bin=one,
            joules=bin_joules(profile, one, at_edges=False),
            joules_at_edges=bin_joules(profile, one, at_edges=True),
        )
        for one in bin_requests(requests, batches)
    )


def _binned(
    profile: FittedModel, found: _Compared, bins: tuple[BinEnergy, ...], idle_s: float | None
) -> list[Estimate]:
    joules = sum(one.joules for one in bins)
    estimates = [
        found.estimate("binned, upper edges (as the paper)", sum(b.joules_at_edges for b in bins)),
        found.estimate("binned, mean lengths", joules),
    ]
    # A log's joules are those of its requests: what is drawn between steps is not among them.
    if idle_s is not None and found.workload.format != REQUEST_LOG:
        idle_joules = profile.power.idle_watts * idle_s
        estimates.append(found.estimate("binned, mean lengths, and idle", joules + idle_joules))
    return estimates


def _naive_name(naive: NaiveEstimate) -> str:
    if naive.utilization_ratio == 1.0:
        return "naive: FLOPs at peak, TDP"
    return f"naive: FLOPs at {naive.utilization_ratio:.0%} of peak, TDP"
