"""Who takes part: the rows of the tables, and how each is tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from serve_app.results.lab import Bench, Lab
from serve_app.results.tuning import (
    Axis,
    Outcome,
    Tuned,
    axis,
    moved,
    scaled,
    tune,
    verified,
)
from serve_app.simulator.specs import PolicySpec, parse_spec

TARGETS = (2.0, 4.0, 6.0, 9.0, 13.0, 19.0, 28.0, 40.0, 60.0)  # ongoing requests per replica
FLOOR_TARGET = 1e5  # no load asks for more than the floor: a static fleet, in Ray's own words
TARGET_KEY, DELAYS = "target_ongoing_requests", {"upscale_delay_s": 0.0, "downscale_delay_s": 300.0}
HEADROOMS = (0.0, 0.2)
RATIO_LOW, RATIO_HIGH, HALVINGS = 0.5, 1.6, 5
FORESIGHTS = ((10.0, 5.0), (10.0, 20.0), (30.0, 5.0), (60.0, 5.0))  # interval and look ahead, s


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A published policy: with its defaults, and the settings that are searched in hindsight."""

    name: str
    default: PolicySpec
    axes: tuple[Axis, ...]


def peers(ray: PolicySpec | None, static: PolicySpec | None) -> dict[str, Peer]:
    """By name. PALS and AGFT set limits at given replicas: by themselves those of WVA, in hindsight
    also those of the tuned Ray rule and of the tuned static fleet (None: not tuned yet)."""
    given = [_given(one) for one in (ray, static) if one is not None]
    headroom = axis("slo_headroom_ratio", HEADROOMS)

    def floors(spec: PolicySpec) -> list[PolicySpec]:
        most = _whole(static, "num_replicas") if static is not None else 1
        return [spec.changed(min_replicas=count) for count in sorted({max(most // 2, 1), most})]

    def fleets(spec: PolicySpec) -> list[PolicySpec]:
        return [spec.changed(**one) for one in given]

    return {
        "wva": Peer(
            name="wva",
            default=parse_spec("wva"),
            axes=(headroom, floors, axis("down_after_s", (60.0,)), axis("tail", (False,))),
        ),
        "dynamollm": Peer(
            name="dynamollm",
            default=parse_spec("dynamollm"),
            axes=(
                axis("headroom_ratio", (0.0, 0.3)), headroom, axis("epoch_s", (120.0,)),
                axis("forecast", ("hindsight",)), floors,
            ),
        ),
        "throttllem": Peer(
            name="throttllem",
            default=parse_spec("throttllem"),
            axes=(headroom, floors, axis("grace_s", (300.0,)), axis("cheapest", (False,))),
        ),
        "pals": Peer(
            name="pals",
            default=parse_spec("pals:replicas=wva"),
            axes=(fleets, axis("margin_ratio", (0.0, 0.3)), headroom, axis("step_s", (2.0,))),
        ),
        "agft": Peer(
            name="agft",
            default=parse_spec("agft:replicas=wva"),
            axes=(fleets, axis("interval_s", (5.0,)), headroom, axis("closed_s", (120.0,))),
        ),
    }  # fmt: skip


def _given(spec: PolicySpec) -> dict[str, float | int | bool | str | None]:
    """Another policy as the one that chooses the replicas."""
    inside = {f"replicas.{key}": value for key, value in spec.options.items()}
    return {"replicas": spec.name, **inside, **spec.fleet, "router": spec.router_name}


def tuned_static(lab: Lab, bench: Bench) -> Tuned:
    """The fewest replicas that attain, at full power: bisection on the excerpts, then one by one in
    full."""
    estimate = lab.peak_replicas(bench)
    most = 2 * estimate + 4
    tried: dict[int, tuple[PolicySpec, Outcome]] = {}

    def look(count: int) -> Outcome:
        if count not in tried:
            spec = PolicySpec(name="static_peak", options={"num_replicas": count})
            tried[count] = (spec, lab.excerpts(bench, spec))
        return tried[count][1]

    low, high = 0, max(estimate, 1)
    while look(high).attained < bench.target and high < most:
        low, high = high, high + max(high // 4, 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if look(middle).attained < bench.target else (low, middle)
    return _fewest(lab, bench, high, most, len(tried))


def _fewest(lab: Lab, bench: Bench, count: int, most: int, tried: int) -> Tuned:
    """The fewest replicas that attain in full, from a count that may be too few or too many; `most`
    where none do."""
    seen: dict[int, tuple[PolicySpec, Outcome]] = {}

    def attains(count: int) -> bool:
        spec = PolicySpec(name="static_peak", options={"num_replicas": count})
        seen[count] = (spec, lab.outcome(bench, spec))
        return seen[count][1].attained >= bench.target

    while not attains(count) and count < most:
        count += 1
    while count > 1 and count - 1 not in seen and attains(count - 1):
        count -= 1
    spec, outcome = seen[count]
    return Tuned(
        spec=spec,
        outcome=outcome,
        attains=outcome.attained >= bench.target,
        tried=tried,
        verified=len(seen),
    )


def screened_target(lab: Lab, bench: Bench, static: Tuned) -> float:
    """What attains on the excerpts: what the fewest replicas that attain in full do there, where
    the excerpts are the harder part of the trace."""
    if not bench.cell.excerpts:
        return bench.target
    return min(bench.target, lab.excerpts(bench, static.spec).attained)


def tuned_ray(lab: Lab, bench: Bench, static: Tuned) -> Tuned:
    """Ray Serve's rule with the best of its own settings, either router, and any floor and
    ceiling: a static fleet is among them. Begins with the highest target that attains, and its
    neighbours, above each of several floors."""
    most = _whole(static.spec, "num_replicas")
    screened = screened_target(lab, bench, static)
    floors = sorted({max(round(share * most), 1) for share in (0.0, 0.25, 0.5, 0.75, 1.0)})

    def rank(spec: PolicySpec) -> tuple[float, float]:
        return lab.excerpts(bench, spec).rank(screened)

    by_floor = [_highest_targets(lab, bench, floor, screened) for floor in floors]
    starts = [spec for specs in by_floor for spec in specs]
    fixed = PolicySpec(name="ray_default", options={TARGET_KEY: FLOOR_TARGET, **DELAYS})
    fixed = fixed.changed(min_replicas=most)
    starts.append(fixed)
    axes = [
        axis("min_replicas", floors),
        scaled(TARGET_KEY, (0.6, 0.8, 1.25, 1.6), 2.0),
        axis("downscale_delay_s", (60.0, 120.0, 600.0)),
        axis("upscale_delay_s", (5.0, 30.0)),
        axis("max_replicas", (most, most + 1)),
        axis("look_back_period_s", (10.0,)),
        axis("upscaling_factor", (0.5, 2.0)),
        axis("router", ("two",)),
        scaled(TARGET_KEY, (0.9, 1.1), 2.0),
        moved("min_replicas", (-1, 1), 1),
    ]
    # Excerpts hold less of the valleys than the whole: the best above each floor has its chance.
    cheapest = [min(specs, key=rank) for specs in by_floor[:-1]]
    return _tuned(lab, bench, starts, axes, screened, [fixed, *cheapest])


def _highest_targets(lab: Lab, bench: Bench, floor: int, screened: float) -> list[PolicySpec]:
    """Ray's rule above a floor with the highest target that attains, found by bisection, and with
    the next one either way: the higher, the fewer replicas."""
    specs = [
        PolicySpec(name="ray_default", options={TARGET_KEY: target, **DELAYS}).changed(
            min_replicas=floor
        )
        for target in TARGETS
    ]
    low, high = 0, len(specs)
    while high - low > 1:
        middle = (low + high) // 2
        attains = lab.excerpts(bench, specs[middle]).attained >= screened
        low, high = (middle, high) if attains else (low, middle)
    return specs[max(low - 1, 0) : low + 2]


def limited(ray: PolicySpec, watts: float) -> PolicySpec:
    """A Ray rule with one fixed limit on every GPU."""
    inside = {f"inner.{key}": value for key, value in ray.options.items()}
    return PolicySpec(
        name="fixed_limit",
        options={"power_limit_watts": watts, "inner": ray.name, **inside},
        fleet=ray.fleet,
        router=ray.router,
    )


def tuned_limit(lab: Lab, bench: Bench, static: Tuned, ray: Tuned) -> Tuned:
    """Ray's rule and one fixed limit, searched together: under a limit a fleet needs other targets
    and floors."""
    limits = bench.cell.scenario(bench.response, 0, bench.variation).power_limits_watts
    most = _whole(static.spec, "num_replicas")
    fixed = PolicySpec(name="ray_default", options={TARGET_KEY: FLOOR_TARGET, **DELAYS})
    fleets = [fixed.changed(min_replicas=count) for count in _larger(most)]
    screened = screened_target(lab, bench, static)
    starts: list[PolicySpec] = []
    for rule in (ray.spec, *fleets):
        starts += _lowest_limits(lab, bench, rule, limits, screened)
    axes = [
        scaled(f"inner.{TARGET_KEY}", (0.5, 0.7, 0.85, 1.2), 2.0),
        moved("min_replicas", (-1, 1), 1),
        axis("power_limit_watts", limits),
        axis("inner.downscale_delay_s", (60.0, 120.0, 600.0)),
        axis("router", ("two",)),
    ]
    found = _tuned(lab, bench, starts, axes, screened, [limited(ray.spec, max(limits))])
    best = min(found, ray, key=lambda one: one.outcome.rank(bench.target))  # or no limit at all
    return _fewest_limited(lab, bench, best, starts, most)


def _fewest_limited(
    lab: Lab, bench: Bench, best: Tuned, starts: Sequence[PolicySpec], most: int
) -> Tuned:
    """The best so far, or the smallest fixed fleet that attains in full under one of the limits
    that fixed fleets began with, where that is cheaper: excerpts of one seed may choose too few."""
    fixed = [spec for spec in starts if spec.options[f"inner.{TARGET_KEY}"] == FLOOR_TARGET]
    for one in {str(spec.options["power_limit_watts"]): spec for spec in fixed}.values():
        for count in range(most, round(1.5 * most) + 1):
            spec = one.changed(min_replicas=count)
            outcome = lab.outcome(bench, spec)
            best = replace(best, verified=best.verified + 1)
            if best.attains and outcome.joules_per_request >= best.outcome.joules_per_request:
                break  # more replicas cost more
            if outcome.attained >= bench.target:
                best = replace(best, spec=spec, outcome=outcome, attains=True)
                break
    return best


def _larger(most: int) -> list[int]:
    """A static fleet's size and what may pay under a limit."""
    return sorted({most, most + 1, round(1.25 * most), round(1.5 * most)})


def _lowest_limits(
    lab: Lab, bench: Bench, rule: PolicySpec, limits: Sequence[float], screened: float
) -> list[PolicySpec]:
    """The rule under the lowest limit that attains, found by bisection, and under the next two: the
    lowest is not always the cheapest."""
    low, high = -1, len(limits) - 1
    while high - low > 1:
        middle = (low + high) // 2
        outcome = lab.excerpts(bench, limited(rule, limits[middle]))
        low, high = (middle, high) if outcome.attained < screened else (low, middle)
    return [limited(rule, watts) for watts in limits[high : high + 3]]


def tuned_peer(lab: Lab, bench: Bench, peer: Peer) -> Tuned:
    """A peer with the best of its own settings."""
    return tune(
        [peer.default],
        peer.axes,
        lambda spec: lab.excerpts(bench, spec),
        lambda spec: judged(lab, bench, spec),
        bench.target,
        also=[peer.default],
    )


def tuned_clairvoyant(lab: Lab, bench: Bench) -> Tuned:
    """The one that knows the trace, with the least caution that attains."""
    tried: list[tuple[PolicySpec, Outcome]] = []
    for interval_s, look_s in FORESIGHTS:
        low, high = RATIO_LOW, RATIO_HIGH
        for _ in range(HALVINGS):
            middle = (low * high) ** 0.5
            spec = PolicySpec(
                name="clairvoyant",
                options={
                    "load_ratio": float(f"{middle:.3g}"),
                    "interval_s": interval_s,
                    "look_s": look_s,
                },
            )
            outcome = lab.excerpts(bench, spec)
            tried.append((spec, outcome))
            low, high = (middle, high) if outcome.attained < bench.target else (low, middle)
    return verified(tried, lambda spec: judged(lab, bench, spec), bench.target)


def judged(lab: Lab, bench: Bench, spec: PolicySpec) -> Outcome:
    """What peers and the clairvoyant run are judged by: the mean over the seeds that they are
    played on, or a sampled cell's excerpts."""
    if bench.cell.sampled:
        return lab.excerpts(bench, spec)
    return lab.outcome(bench, spec, bench.cell.peer_seeds)


def _tuned(  # noqa: PLR0913, PLR0917
    lab: Lab,
    bench: Bench,
    starts: Sequence[PolicySpec],
    axes: Sequence[Axis],
    screened: float,
    also: Sequence[PolicySpec] = (),
) -> Tuned:
    return tune(
        starts,
        axes,
        lambda spec: lab.excerpts(bench, spec),
        lambda spec: lab.outcome(bench, spec),
        bench.target,
        also=also,
        screened=screened,
    )


def _whole(spec: PolicySpec, key: str) -> int:
    value = spec.options[key]
    assert isinstance(value, int), f"{key} is a whole number"
    return value
