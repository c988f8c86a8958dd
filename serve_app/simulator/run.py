"""One trace under one policy, and what came of it as a row."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from policies.core.control import Policy
from policies.core.types import (
    ControlSettings,
    ControlState,
    Decision,
    Knob,
    Observation,
    Reason,
)
from policies.model.fitted import FittedModel
from policies.model.online import Correction
from policies.sim.blocks import Block, pieces
from serve_app.simulator.compiled import keep_compiled
from serve_app.simulator.load import load_of
from serve_app.simulator.make import Context, build
from serve_app.simulator.scenario import Scenario
from serve_app.simulator.specs import PolicySpec

if TYPE_CHECKING:
    from policies.sim.beliefs import Correctable
    from policies.sim.outcome import SimResult

ROW_KEYS = (
    "policy", "trace", "profile", "slo", "requests", "completed", "joules_per_request",
    "joules_per_output_token", "slo_attainment_ratio", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s",
    "tpot_p99_s", "mean_replicas", "scale_actions", "wall_s",
)  # fmt: skip
"""What every row has, for outsiders (DESIGN.md §5); more may follow."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Run:
    """A finished run. `scenario`: with the fleet sizes that it had. `errors`: decisions that failed
    and so held everything as it was, and why the first of them did."""

    spec: PolicySpec
    trace: str
    scenario: Scenario
    result: SimResult
    wall_s: float
    errors: int = 0
    first_error: str = ""


@dataclass(kw_only=True, slots=True)
class _Errors:
    count: int = 0
    first: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Watched:
    """A policy never raises: it holds where it fails. In a comparison that must not go unseen."""

    policy: Policy
    errors: _Errors = field(default_factory=_Errors)

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def believed(self) -> FittedModel | None:
        return getattr(self.policy, "believed", None)

    def corrected(self, correction: Correction) -> _Watched:
        """On the corrected model; asked only where one is believed."""
        return replace(self, policy=cast("Correctable", self.policy).corrected(correction))

    def decide(
        self,
        observation: Observation,
        state: ControlState,
        settings: ControlSettings,
        free: frozenset[Knob],
    ) -> tuple[Decision, ControlState]:
        decision, state = self.policy.decide(observation, state, settings, free)
        if decision.reason is Reason.ERROR:
            self.errors.count += 1
            self.errors.first = self.errors.first or "; ".join(decision.notes)
        return decision, state


def simulate_trace(trace: tuple[str, Block], spec: PolicySpec, scenario: Scenario) -> Run:
    """Play a named trace. The same arguments give the same result. Raises ConfigError."""
    keep_compiled()
    from policies.sim.fleet import simulate

    name, block = trace
    context = context_of(block, scenario)
    policy = _Watched(policy=build(spec, context))
    settings = context.scenario.sim_settings(spec)
    begin_s = time.perf_counter()
    result = simulate(pieces(block), context.scenario.truth, policy, settings)
    wall_s = time.perf_counter() - begin_s
    return Run(
        spec=spec,
        trace=name,
        scenario=context.scenario,
        result=result,
        wall_s=wall_s,
        errors=policy.errors.count,
        first_error=policy.errors.first,
    )


def context_of(block: Block, scenario: Scenario) -> Context:
    """The scenario sized for the trace, with its load."""
    load = load_of(block)
    return Context(scenario=scenario.sized(load), block=block, load=load)


def row(run: Run) -> dict[str, Any]:
    """One JSON object; null is "not known"."""
    result, scenario = run.result, run.scenario
    slo, joules = scenario.slo, result.joules
    return {
        "policy": run.spec.text,
        "trace": run.trace,
        "profile": scenario.truth.name,
        "slo": {
            "ttft_ms": slo.ttft_s * 1e3, "tpot_ms": slo.tpot_s * 1e3, "percentile": slo.percentile,
        },
        "requests": result.arrived,
        "completed": result.completed,
        "joules_per_request": result.joules_per_request,
        "joules_per_output_token": result.joules_per_output_token,
        "slo_attainment_ratio": result.attainment_ratio,
        "ttft_p50_s": result.ttft.percentile(0.5),
        "ttft_p99_s": result.ttft.percentile(0.99),
        "tpot_p50_s": result.tpot.percentile(0.5),
        "tpot_p99_s": result.tpot.percentile(0.99),
        "mean_replicas": result.mean_replicas,
        "scale_actions": result.scale_actions,
        "wall_s": run.wall_s,
        "limit_actions": result.limit_actions,
        "cap_actions": result.cap_actions,
        "joules": joules,
        **dict(_shares(result, joules)),
        "output_tokens": result.output_tokens,
        "lost": result.lost,
        "late_first_ratio": _over(result.late_first, result.arrived),
        "slow_ratio": _over(result.slow, result.arrived),
        "preemptions": result.preemptions,
        "duration_s": result.duration_s,
        "policy_errors": run.errors,
        "router": run.spec.router_name,
        "initial_replicas": scenario.initial_replicas,
        "max_replicas": scenario.max_replicas,
        "seed": scenario.seed,
    }  # fmt: skip


def _shares(result: SimResult, joules: float) -> Iterator[tuple[str, float | None]]:
    yield "active_joules_ratio", _over(result.active_joules, joules)
    yield "prefill_joules_ratio", _over(result.prefill_joules, joules)
    yield "idle_joules_ratio", _over(result.idle_joules, joules)
    yield "start_joules_ratio", _over(result.start_joules, joules)


def _over(part: float, whole: float) -> float | None:
    return part / whole if whole else None
