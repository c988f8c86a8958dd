"""Runs of a cell, each once: from settings to an entry of the store."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from policies.core.errors import ConfigError
from policies.least_energy import least_joules
from policies.sim.blocks import window
from serve_app.results.cells import Cell, Variation
from serve_app.results.fingerprint import digest_of, digest_of_modules
from serve_app.results.store import Store
from serve_app.results.tuning import Outcome
from serve_app.simulator.load import TraceLoad, load_of, replicas_for
from serve_app.simulator.picture import series_of
from serve_app.simulator.run import Run, row, simulate_trace
from serve_app.simulator.scenario import Scenario
from serve_app.simulator.specs import PolicySpec

KEPT = (
    "requests", "completed", "joules", "joules_per_request", "joules_per_output_token",
    "slo_attainment_ratio", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s",
    "mean_replicas", "scale_actions", "limit_actions", "cap_actions", "idle_joules_ratio",
    "start_joules_ratio", "late_first_ratio", "slow_ratio", "lost", "preemptions",
    "policy_errors", "router", "initial_replicas", "max_replicas", "wall_s",
)  # fmt: skip
_SUMMED = (
    "joules", "arrived", "completed", "attained", "replica_s", "duration_s", "scale_actions",
    "limit_actions", "cap_actions",
)  # fmt: skip
SHOWN = frozenset({"energy_slo", "ray_default"})  # in pictures
LIMITLESS = frozenset({"ray_default", "static_peak", "wva"})  # these set no power limit


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """A cell under one response to limits, one seed and one variation."""

    cell: Cell
    response: str
    seed: int = 0
    variation: Variation = field(default_factory=Variation)

    @property
    def target(self) -> float:
        """The share of requests that both targets are for."""
        return self.cell.file.slo.percentile


class Lab:
    """Runs policies on a bench, or finds what they came to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._digests: dict[tuple[str, Variation], str] = {}
        self._loads: dict[tuple[str, int], TraceLoad] = {}

    def full(self, bench: Bench, spec: PolicySpec) -> dict[str, Any]:
        """The whole trace. The first seed of SHOWN policies with what it looked like over time."""
        key = self._key(bench, spec, "full")
        found = self._store.get(key)
        if found is None:
            found = self._run_full(bench, spec)
            self._store.put(key, found)
        return found

    def outcome(self, bench: Bench, spec: PolicySpec, seeds: int | None = None) -> Outcome:
        """Of the whole trace, the mean over `seeds`, or over all that the cell has: what attains on
        one draw of a bursty load may miss on the next."""
        count = bench.cell.seeds if seeds is None else seeds
        found = [self.one(replace(bench, seed=seed), spec) for seed in range(count)]
        return Outcome(
            joules_per_request=math.fsum(one.joules_per_request for one in found) / len(found),
            attained=math.fsum(one.attained for one in found) / len(found),
        )

    def one(self, bench: Bench, spec: PolicySpec) -> Outcome:
        """Of the whole trace at the bench's own seed."""
        return _outcome(self.full(bench, spec))

    def sample(self, bench: Bench, spec: PolicySpec) -> dict[str, Any]:
        """The cell's excerpts together; the whole trace where it has none."""
        if not bench.cell.excerpts:
            return self.full(bench, spec)
        key = self._key(bench, spec, "excerpts")
        found = self._store.get(key)
        if found is None:
            found = self._run_excerpts(bench, spec)
            self._store.put(key, found)
        return found

    def excerpts(self, bench: Bench, spec: PolicySpec) -> Outcome:
        """Of the sample."""
        return _outcome(self.sample(bench, spec))

    def bound(self, bench: Bench) -> dict[str, Any]:
        """The joules below which nothing can be, per request."""
        key = self._key(bench, None, "bound")
        found = self._store.get(key)
        if found is None:
            block, scenario = self._load(bench)
            joules = least_joules(
                scenario.truth,
                (None, *scenario.power_limits_watts),
                block.prompt_tokens.astype(np.float64),
                block.output_tokens.astype(np.float64),
                scenario.engine,
            )
            found = {"requests": block.rows, "joules_per_request": joules / block.rows}
            self._store.put(key, found)
        return found

    def peak_replicas(self, bench: Bench) -> int:
        """What the busiest minute needs at full power, by the truth."""
        _, scenario = self._load(bench)
        load = self._load_of(bench)
        return replicas_for(scenario.truth, load, load.peak_per_s, scenario.slo, scenario.engine)

    def _load_of(self, bench: Bench) -> TraceLoad:
        key = (self._digest(bench), bench.seed)
        if key not in self._loads:
            self._loads[key] = load_of(bench.cell.block(bench.seed, bench.variation))
        return self._loads[key]

    def _digest(self, bench: Bench) -> str:
        key = (bench.cell.name, bench.variation)  # a lab is for the cells of one file
        if key not in self._digests:
            self._digests[key] = bench.cell.digest(bench.variation)
        return self._digests[key]

    def _load(self, bench: Bench) -> tuple[Any, Scenario]:
        block = bench.cell.block(bench.seed, bench.variation)
        return block, bench.cell.scenario(bench.response, bench.seed, bench.variation)

    def _run_full(self, bench: Bench, spec: PolicySpec) -> dict[str, Any]:
        block, scenario = self._load(bench)
        run = _simulated((bench.cell.name, block), spec, scenario)
        if run is None:
            return {"policy": spec.text, "joules_per_request": None, "slo_attainment_ratio": 0.0}
        found = {"policy": spec.text, **{key: row(run)[key] for key in KEPT}}
        if spec.name in SHOWN and bench.seed == 0:
            shown = asdict(series_of(list(run.result.moments)))
            found["series"] = {name: _listed(values) for name, values in shown.items()}
        return found

    def _run_excerpts(self, bench: Bench, spec: PolicySpec) -> dict[str, Any]:
        block, scenario = self._load(bench)
        whole = scenario.sized(self._load_of(bench))
        scenario = replace(scenario, max_replicas=whole.max_replicas)
        sums = dict.fromkeys(_SUMMED, 0.0)
        for begin_s, length_s in bench.cell.excerpts:
            part = window(block, begin_s, begin_s + length_s)
            if not part.rows:
                raise ConfigError(f"{bench.cell.name}: excerpt {begin_s:g} s: no request")
            run = _simulated((bench.cell.name, part), spec, scenario)
            if run is None:
                sums["arrived"] += part.rows
                continue
            for key in _SUMMED:
                sums[key] += getattr(run.result, key)
        return {
            "policy": spec.text,
            "requests": int(sums["arrived"]),
            "joules_per_request": _over(sums["joules"], sums["completed"]),
            "slo_attainment_ratio": _over(sums["attained"], sums["arrived"]),
            "mean_replicas": _over(sums["replica_s"], sums["duration_s"]),
            **{key: sums[key] for key in _SUMMED if key.endswith("_actions")},
            "router": spec.router_name,
        }

    def _key(self, bench: Bench, spec: PolicySpec | None, kind: str) -> str:
        """Everything that the result depends on. A policy that sets no limit comes to the same
        under every response to limits."""
        names = () if spec is None else _names(spec)
        own = ("policies.least_energy",)
        code = digest_of_modules(own) if spec is None else digest_of(names)
        limitless = bool(names) and set(names) <= LIMITLESS
        response = "any" if limitless else bench.response
        scenario = bench.cell.scenario(
            bench.cell.file.cap_responses[0] if limitless else bench.response,
            bench.seed,
            bench.variation,
        )
        settings = {
            "kind": kind,
            "policy": None if spec is None else (spec.text, spec.router_name),
            "response": response,
            "scenario": repr(scenario),
            "trace": self._digest(bench),
            "excerpts": bench.cell.excerpts if kind == "excerpts" else None,
            "code": code,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]


def _names(spec: PolicySpec) -> tuple[str, ...]:
    inner = {"fixed_limit": "ray_default", "only": "energy_slo"}.get(spec.name)
    inside = [spec.options.get(key) for key in ("inner", "replicas")]
    return (spec.name, *(str(one) for one in (*inside, inner) if one is not None))


def _simulated(trace: tuple[str, Any], spec: PolicySpec, scenario: Scenario) -> Run | None:
    """None where the fleet falls ever further behind: a result, and a bad one."""
    try:
        run = simulate_trace(trace, spec, scenario)
    except ConfigError as error:
        if "max_outstanding" in str(error):
            return None
        raise
    if run.errors:
        raise ConfigError(
            f"policy {spec.text} on {trace[0]}: {run.errors} decisions failed: {run.first_error}"
        )
    return run


def _outcome(found: dict[str, Any]) -> Outcome:
    joules, attained = found["joules_per_request"], found["slo_attainment_ratio"]
    return Outcome(
        joules_per_request=math.inf if joules is None else joules, attained=attained or 0.0
    )


def _over(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _listed(values: Any) -> list[float | None]:
    return [None if math.isnan(one) else float(f"{one:.5g}") for one in values]
