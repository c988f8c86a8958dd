"""From what a policy is called with to the policy: options checked, model and trace handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from policies.catalog import POLICIES, make_policy
from policies.clairvoyant import Clairvoyant, foresight_of
from policies.core.control import Policy
from policies.core.errors import ConfigError
from policies.core.types import Knob
from policies.joint.options import JointOptions
from policies.sim.blocks import Block
from policies.static_peak import replicas_for_peak
from serve_app.simulator.load import TraceLoad
from serve_app.simulator.ray_rule import RayOptions
from serve_app.simulator.scenario import Scenario
from serve_app.simulator.specs import PolicySpec, Value

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMES = (*POLICIES, "clairvoyant")
FORECASTS = ("trend", "hindsight")
_NOT_OPTIONS = frozenset({"model", "note", "options", "inner", "replicas", "foresight"})
_HANDED_IN = frozenset({"desired_num_replicas", "peak_rate_per_s", "knobs"})
_JOINT_GIVEN = frozenset({"explain"})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Context:
    """What policies are made for: a sized scenario, its trace and that trace's load."""

    scenario: Scenario
    block: Block
    load: TraceLoad


def build(spec: PolicySpec, context: Context) -> Policy:
    """The policy of a spec, new and without memory. Raises ConfigError with the allowed keys."""
    if spec.name not in NAMES:
        raise ConfigError(f"policy name is {spec.name!r}; allowed: {', '.join(NAMES)}")
    return _MAKERS.get(spec.name, _plain)(spec, context)


def _plain(spec: PolicySpec, context: Context) -> Policy:
    """Options are the fields; a `model` is what the policy believes."""
    return make_policy(spec.name, **_model(spec, context), **_fields(spec))


def _energy_slo(spec: PolicySpec, context: Context) -> Policy:
    scenario = context.scenario
    given: dict[str, Any] = {
        "cold_start_s": scenario.cold_start_s,
        "start_watts": scenario.cold_start_watts,
        "max_num_batched_tokens": scenario.max_num_batched_tokens,
        "packed": spec.router_name == "packed",
        "explain": False,
    }
    allowed = {one.name: str(one.type) for one in fields(JointOptions)}
    allowed = {name: kind for name, kind in allowed.items() if name not in _JOINT_GIVEN}
    given |= _checked(spec, allowed)
    return make_policy("energy_slo", model=scenario.belief, options=JointOptions(**given))


def _ray_default(spec: PolicySpec, _: Context) -> Policy:
    from serve_app.simulator.ray_rule import RayRule

    allowed = {one.name: str(one.type) for one in fields(RayOptions)}
    options = RayOptions(**_checked(spec, allowed))
    return make_policy("ray_default", desired_num_replicas=RayRule(options))


def _static_peak(spec: PolicySpec, context: Context) -> Policy:
    given = _fields(spec)
    if given.get("num_replicas") is None:
        given["num_replicas"] = peak_replicas(context, spec)
    return make_policy("static_peak", **given)


def _fixed_limit(spec: PolicySpec, context: Context) -> Policy:
    given = _fields(spec, inner="inner")
    return make_policy("fixed_limit", inner=_within(spec, "inner", "ray_default", context), **given)


def _with_replicas(spec: PolicySpec, context: Context) -> Policy:
    given = _fields(spec, inner="replicas")
    inner = _within(spec, "replicas", None, context)
    return make_policy(spec.name, model=context.scenario.belief, replicas=inner, **given)


def _dynamollm(spec: PolicySpec, context: Context) -> Policy:
    given = _fields(spec, more={"forecast": "str"})
    forecast = given.pop("forecast", FORECASTS[0])
    if forecast not in FORECASTS:
        raise ConfigError(
            f"policy dynamollm: forecast is {forecast!r}; allowed: {', '.join(FORECASTS)}"
        )
    known = _peaks(context.block.arrival_s) if forecast == "hindsight" else None
    return make_policy("dynamollm", model=context.scenario.belief, peak_rate_per_s=known, **given)


def _wva(spec: PolicySpec, context: Context) -> Policy:
    given = {"kv_capacity_tokens": float(context.scenario.kv_capacity_tokens), **_fields(spec)}
    return make_policy("wva", model=context.scenario.belief, **given)


def _throttllem(spec: PolicySpec, context: Context) -> Policy:
    given = {"tick_s": context.scenario.tick_s, **_fields(spec)}
    return make_policy("throttllem", model=context.scenario.belief, **given)


def _only(spec: PolicySpec, context: Context) -> Policy:
    given = _fields(spec, inner="inner", more={"knobs": "str"})
    text = str(given.pop("knobs", Knob.POWER_LIMIT))
    knobs = [part for part in text.split("+") if part]
    if Knob.NUM_REPLICAS not in knobs and given.get("num_replicas") is None:
        given["num_replicas"] = peak_replicas(context, spec)
    inner = _within(spec, "inner", "energy_slo", context)
    return make_policy("only", inner=inner, knobs=tuple(knobs), **given)


def _clairvoyant(spec: PolicySpec, context: Context) -> Policy:
    scenario, block = context.scenario, context.block
    given = _fields(spec, kind=Clairvoyant, more={"interval_s": "float"})
    foresight = foresight_of(
        block.arrival_s,
        block.prompt_tokens.astype(np.float64),
        block.output_tokens.astype(np.float64),
        scenario.truth.latency,
        float(given.pop("interval_s", 10.0)),
    )
    given = {
        "cold_start_s": scenario.cold_start_s,
        "start_watts": scenario.cold_start_watts,
        "max_num_batched_tokens": scenario.max_num_batched_tokens,
        **given,
    }
    return Clairvoyant(model=scenario.truth, foresight=foresight, **given)


_MAKERS: Mapping[str, Callable[[PolicySpec, Context], Policy]] = {
    "energy_slo": _energy_slo,
    "ray_default": _ray_default,
    "static_peak": _static_peak,
    "fixed_limit": _fixed_limit,
    "pals": _with_replicas,
    "agft": _with_replicas,
    "dynamollm": _dynamollm,
    "wva": _wva,
    "throttllem": _throttllem,
    "only": _only,
    "clairvoyant": _clairvoyant,
}


def peak_replicas(context: Context, spec: PolicySpec) -> int:
    """The fleet for the busiest minute of the trace, by what is believed: known in hindsight."""
    load, scenario = context.load, context.scenario
    peak = load.at(load.peak_per_s)
    return replicas_for_peak(scenario.belief, peak, scenario.control(spec))


def _model(spec: PolicySpec, context: Context) -> dict[str, Any]:
    takes = any(one.name == "model" for one in fields(POLICIES[spec.name]))
    return {"model": context.scenario.belief} if takes else {}


def _within(spec: PolicySpec, key: str, default: str | None, context: Context) -> Policy | None:
    """The policy within another: `key` names it, `key.option` are its options."""
    name = spec.options.get(key, default)
    if name is None:
        return None
    inner = PolicySpec(
        name=str(name), options=spec.within(key), fleet=spec.fleet, router=spec.router_name
    )
    return build(inner, context)


def _fields(
    spec: PolicySpec,
    *,
    kind: type[Any] | None = None,
    inner: str | None = None,
    more: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The options that are fields of the policy's class, and `more`."""
    allowed = {
        one.name: str(one.type)
        for one in fields(kind or POLICIES[spec.name])
        if one.init and one.name not in _NOT_OPTIONS | _HANDED_IN
    }
    return _checked(spec, {**allowed, **(more or {})}, inner)


def _checked(
    spec: PolicySpec, allowed: Mapping[str, str], inner: str | None = None
) -> dict[str, Any]:
    """Key → value, each of the type that its field says. Raises ConfigError."""
    found: dict[str, Any] = {}
    for key, value in spec.options.items():
        if inner is not None and (key == inner or key.startswith(f"{inner}.")):
            continue
        if key not in allowed:
            names = [*allowed, *([f"{inner}, {inner}.OPTION"] if inner else ())]
            raise ConfigError(
                f"policy {spec.name}: unknown option {key}; allowed: {', '.join(names) or '(none)'}"
            )
        if not _fits(value, allowed[key]):
            raise ConfigError(f"policy {spec.name}: {key} is {value!r}; allowed: {allowed[key]}")
        found[key] = value
    return found


def _fits(value: Value, kind: str) -> bool:
    if value is None:
        return "None" in kind
    if isinstance(value, bool):
        return "bool" in kind
    if isinstance(value, int):
        return "int" in kind or "float" in kind
    return "float" in kind if isinstance(value, float) else "str" in kind


def _peaks(arrivals_s: np.ndarray[Any, Any]) -> Callable[[float, float], float]:
    """(start, end) → the requests/s of the busiest minute that begins in between."""
    count = int(arrivals_s[-1] // 10.0) + 7
    tens = np.bincount((arrivals_s // 10.0).astype(np.int64), minlength=count)
    minutes = np.convolve(tens, np.ones(6), mode="full")[5:] / 60.0

    def peak(start_s: float, end_s: float) -> float:
        first = max(int(start_s // 10.0), 0)
        inside = minutes[first : max(int(end_s // 10.0), first) + 1]
        return float(inside.max()) if len(inside) else 0.0

    return peak


def check_all(specs: Iterable[PolicySpec]) -> Sequence[PolicySpec]:
    """The specs, if every name is known: asked before long work. Raises ConfigError."""
    known = list(specs)
    for spec in known:
        if spec.name not in NAMES:
            raise ConfigError(f"policy name is {spec.name!r}; allowed: {', '.join(NAMES)}")
    return known
