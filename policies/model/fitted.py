"""A fitted model of one LLM on one device: the answer to `what if the fleet ran at this point`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from policies.core.errors import ConfigError, NotFitted, OutOfRange
from policies.core.types import SLO, Binding, Load, OperatingPoint, Prediction
from policies.model.batch import BatchProcess, Floats
from policies.model.latency import LatencyModel
from policies.model.parsing import read_fields
from policies.model.power import PowerModel
from policies.model.replica import draw_table, first_token_s

SCHEMA_VERSION = 1

_Part = TypeVar("_Part", LatencyModel, PowerModel)

RANGE_MARGIN = 1.2  # questions up to this multiple of the fitted range are answered
CAPACITY_SHARE = 0.98  # a point that runs above this share of its capacity is not feasible
MIN_RATE_PER_S = 1e-6  # below, joules per request grow without bound: not a question of load
MAX_RATE_PER_S = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidRange:
    """The largest values that the fit has seen: batch, prompt + output tokens, prompt tokens."""

    max_num_seqs: int
    max_context_tokens: int
    max_prompt_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Residuals:
    """|predicted - measured| / measured on held-out steps, and how many steps there were."""

    step_time_median_ratio: float
    step_time_p95_ratio: float
    energy_median_ratio: float
    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Bands:
    """Relative 95 % half-widths of what the model says; None = not known.

    `step_time_ratio`: of steps that decode; `prefill_ratio`: of the time of prompts;
    `energy_ratio`: of step energy; `power_limit_ratio`: of speed and draw under a power limit.
    """

    step_time_ratio: float | None = None
    prefill_ratio: float | None = None
    energy_ratio: float | None = None
    power_limit_ratio: float | None = None


# What a fit must reach to be acted on. The published fits of this form stay within 6 % (median);
# the limits leave room for a noisy shared CPU, and are far below the savings that are decided on.
# So many samples are needed to leave one out; a published steady state of minutes counts as one.
WORST_TRUSTED = Residuals(
    step_time_median_ratio=0.15, step_time_p95_ratio=0.5, energy_median_ratio=0.2, samples=6
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedModel:
    """Latency and power of `model` on `device`, with the range, the residuals and the provenance.

    Implements `policies.core.objective.PerfModel`. `predict` and `full_batch_tpot_s` raise
    NotFitted when the model is not `trusted`, and OutOfRange when a question lies beyond 1.2x the
    fitted range or is no load at all (below 1e-6 requests/s, NaN, less than one output token).
    """

    name: str
    model: str
    device: str
    latency: LatencyModel
    power: PowerModel
    valid: ValidRange
    residuals: Residuals
    bands: Bands = field(default_factory=Bands)
    provenance: dict[str, str] = field(default_factory=dict, hash=False)
    schema_version: int = SCHEMA_VERSION

    @property
    def trusted(self) -> bool:
        """Whether every residual is within `WORST_TRUSTED`; NaN is not."""
        seen, worst = self.residuals, WORST_TRUSTED
        return (
            seen.step_time_median_ratio <= worst.step_time_median_ratio
            and seen.step_time_p95_ratio <= worst.step_time_p95_ratio
            and seen.energy_median_ratio <= worst.energy_median_ratio
            and seen.samples >= worst.samples
        )

    def predict(self, point: OperatingPoint, load: Load, slo: SLO) -> Prediction:
        """Latency at `slo.percentile`, fleet draw and joules of `point` under the fleet's `load`.

        The load is taken to split evenly. All values are finite and >= 0; past capacity, where no
        steady state exists, latencies are those at 0.999 of it and joules are per *completed*
        request. More load never draws less; a smaller cap never has a larger TPOT.
        """
        latency, share = self._replica(point, load)
        curve, cap = latency.curve(share), point.max_num_active_seqs
        process = BatchProcess(arrival_rate_per_s=share.arrival_rate_per_s, curve=curve, cap=cap)
        capacity_per_s = process.capacity_per_s
        probabilities = process.probabilities()
        utilization = share.arrival_rate_per_s / capacity_per_s
        draw_watts = point.num_replicas * float(
            probabilities @ self.draw_by_batch(load, cap, point.power_limit_watts)
        )
        completed_per_s = min(load.arrival_rate_per_s, capacity_per_s * point.num_replicas)
        admitted = _at_most(share, capacity_per_s)
        batch = process.batch_at(slo.percentile)
        slot_s = process.wait_s(probabilities, slo.percentile)
        ttft_s = first_token_s(curve, admitted.arrival_rate_per_s, batch, slot_s, slo.percentile)
        tpot_s = latency.tpot_s(admitted, batch, slo.percentile)
        return Prediction(
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            draw_watts=draw_watts,
            joules_per_request=draw_watts / completed_per_s,
            utilization_ratio=utilization,
            binding=_binding(utilization, ttft_s, tpot_s, slo),
        )

    def full_batch_tpot_s(self, point: OperatingPoint, load: Load, slo: SLO) -> float:
        """TPOT at `slo.percentile` while the batch is full: what the cap guarantees in a burst."""
        latency, share = self._replica(point, load)
        cap = point.max_num_active_seqs
        admitted = _at_most(share, latency.capacity_per_s(share, cap))
        return latency.tpot_s(admitted, cap, slo.percentile)

    def capacity_per_s(self, point: OperatingPoint, load: Load) -> float:
        """Requests/s that the whole fleet completes at `point` with every batch full."""
        latency, share = self._replica(point, load)
        return point.num_replicas * latency.capacity_per_s(share, point.max_num_active_seqs)

    def corrected(self, *, step_time_ratio: float = 1.0, energy_ratio: float = 1.0) -> FittedModel:
        """The same model when steps take and cost these multiples of what it says (both > 0). The
        idle draw, which no step has, stays."""
        if step_time_ratio == 1.0 and energy_ratio == 1.0:
            return self
        return replace(
            self,
            latency=_scaled(self.latency, step_time_ratio, keep=_UNSCALED),
            power=_scaled(self.power, energy_ratio, keep=_UNSCALED),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back exactly."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "profile") -> FittedModel:
        """The model from `to_dict`'s data; ConfigError names `source`, key and allowed values."""
        found = read_fields(cls, data, source)
        if found.schema_version != SCHEMA_VERSION:
            raise ConfigError(
                f"{source}: schema_version is {found.schema_version}; allowed: {SCHEMA_VERSION}"
            )
        latency = found.latency
        if latency.d_s_per_token_beyond_knee * latency.knee_tokens > latency.t0_s * (1.0 + 1e-9):
            raise ConfigError(
                f"{source}: latency.d_s_per_token_beyond_knee x knee_tokens is above t0_s; "
                "allowed: at most t0_s, or a larger batch would complete less"
            )
        response = found.power.cap_response
        if response is not None and not response.ck_watts > response.c0_watts:
            raise ConfigError(
                f"{source}: power.cap_response.ck_watts is {response.ck_watts}; "
                f"allowed: a number above c0_watts ({response.c0_watts})"
            )
        return found

    def _replica(self, point: OperatingPoint, load: Load) -> tuple[LatencyModel, Load]:
        """The latency model under the point's limit, and one replica's share of the load."""
        self.check(point, load)
        share = _with_rate(load, load.arrival_rate_per_s / point.num_replicas)
        return self.latency_under(point.power_limit_watts), share

    def check(self, point: OperatingPoint, load: Load) -> None:
        """Raise NotFitted or OutOfRange where `predict` would; the power limit apart."""
        if not self.trusted:
            raise NotFitted(
                f"profile {self.name}: residuals {self.residuals} exceed {WORST_TRUSTED}"
            )
        valid, prompt, output = self.valid, load.prompt_tokens, load.output_tokens
        checks = (
            ("arrival_rate_per_s", load.arrival_rate_per_s, MIN_RATE_PER_S, MAX_RATE_PER_S),
            ("num_replicas", point.num_replicas, 1, math.inf),
            ("max_num_active_seqs", point.max_num_active_seqs, 1, valid.max_num_seqs),
            ("prompt_tokens", prompt, 0.0, valid.max_prompt_tokens),
            ("output_tokens", output, 1.0, valid.max_context_tokens),
            ("prompt + output tokens", prompt + output, 1.0, valid.max_context_tokens),
        )
        for key, value, low, high in checks:
            if not low <= value <= RANGE_MARGIN * high:
                raise OutOfRange(
                    f"profile {self.name}: {key} is {value}; fitted: {low:g} to {high:g}"
                )

    def latency_under(self, limit_watts: float | None) -> LatencyModel:
        """The latency model under a power limit; OutOfRange where its effect is not known."""
        if limit_watts is None:
            return self.latency
        return _limited(self.latency, self.power, limit_watts)

    def draw_by_batch(self, load: Load, cap: int, limit_watts: float | None) -> Floats:
        """Draw of one replica with 0..cap running requests, watts: no limit's, cut at the limit."""
        table = draw_table(
            self.power.curve(load), self.latency.curve(load), self.power.idle_watts, cap
        )
        ceiling_watts = self.power.ceiling_watts(limit_watts)
        return table if ceiling_watts == math.inf else np.minimum(table, ceiling_watts)


_UNSCALED = frozenset(
    {"knee_tokens", "idle_watts", "natural_draw_watts", "cap_response", "num_devices"}
)


def _scaled(part: _Part, ratio: float, keep: frozenset[str]) -> _Part:
    scaled = {f.name: ratio * getattr(part, f.name) for f in fields(part) if f.name not in keep}
    return replace(part, **scaled)


@lru_cache(maxsize=256)
def _limited(latency: LatencyModel, power: PowerModel, limit_watts: float) -> LatencyModel:
    speeds = power.speeds(limit_watts)
    return latency.slowed(
        prefill_speed_ratio=speeds.prefill_ratio, decode_speed_ratio=speeds.decode_ratio
    )


def _at_most(share: Load, capacity_per_s: float) -> Load:
    """The load that is admitted: a full replica takes in no more than it completes."""
    if share.arrival_rate_per_s <= capacity_per_s:
        return share
    return _with_rate(share, capacity_per_s)


def _with_rate(load: Load, rate_per_s: float) -> Load:
    return Load(
        arrival_rate_per_s=rate_per_s,
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
    )


def _binding(utilization: float, ttft_s: float, tpot_s: float, slo: SLO) -> Binding:
    if utilization >= CAPACITY_SHARE:
        return Binding.CAPACITY
    if ttft_s > slo.ttft_s:
        return Binding.TTFT
    return Binding.TPOT if tpot_s > slo.tpot_s else Binding.NONE
