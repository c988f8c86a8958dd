"""Every peer plays a short swing of load: it serves all, and those that save do save."""

from __future__ import annotations

from dataclasses import replace

import pytest
from peer_cases import H100, SETTINGS

from policies.core.types import Knob
from policies.energy_slo import EnergySlo
from policies.ray_default import RayDefault
from policies.sim.arrivals import Lengths, TraceRow, poisson
from policies.static_peak import StaticPeak, peak_load, replicas_for_peak
from serve_app.simulator.ray_rule import RayOptions, RayRule

pytestmark = pytest.mark.slow  # compiling takes half a minute where it is done anew

CONTROL = replace(SETTINGS, slo_headroom_ratio=0.1)
LENGTHS = Lengths.constant(500, 200)
SWING = [(0.0, 30.0), (400.0, 90.0), (800.0, 30.0)]


def trace():
    return [
        TraceRow(
            arrival_s=row.arrival_s + begin_s,
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
        )
        for seed, (begin_s, rate) in enumerate(SWING)
        for row in poisson(rate, 400.0, LENGTHS, seed=seed)
    ]


def tuned():
    options = RayOptions(target_ongoing_requests=40.0, upscale_delay_s=5.0, downscale_delay_s=60.0)
    return RayDefault(desired_num_replicas=RayRule(options))


def peers(peak):
    """Name → a new policy."""
    from policies.catalog import make_policy

    fixed = StaticPeak(num_replicas=peak)
    return {
        "static_peak": fixed,
        "ray_default": tuned(),
        "fixed_limit": make_policy("fixed_limit", inner=tuned(), power_limit_watts=500.0),
        "wva": make_policy("wva", model=H100, down_after_s=60.0),
        "pals": make_policy("pals", model=H100, replicas=fixed),
        "dynamollm": make_policy("dynamollm", model=H100, epoch_s=100.0),
        "throttllem": make_policy("throttllem", model=H100),
        "agft": make_policy("agft", model=H100, replicas=fixed),
        "limit only": make_policy(
            "only", inner=EnergySlo(model=H100), knobs={Knob.POWER_LIMIT}, num_replicas=peak
        ),
    }


def test_every_peer_serves_a_swing():
    from policies.sim.fleet import simulate
    from policies.sim.outcome import SimSettings

    rows = trace()
    peak = replicas_for_peak(H100, peak_load(rows), CONTROL)
    found = {}
    for name, policy in peers(peak).items():
        settings = SimSettings(control=CONTROL, initial_replicas=peak, cold_start_s=30.0)
        result = simulate(rows, H100, policy, settings)
        assert result.completed == result.arrived == len(rows), name
        found[name] = result
        print(
            f"{name:12} {result.joules_per_request:7.1f} J/request, attained "
            f"{result.attainment_ratio:.4f}, {result.mean_replicas:.2f} replicas, "
            f"{result.scale_actions} + {result.limit_actions} + {result.cap_actions} moves"
        )
    full = found["static_peak"]
    assert full.attainment_ratio > 0.99
    for name, result in found.items():
        assert result.attainment_ratio > 0.9, name
    for name in ("pals", "agft", "limit only", "dynamollm", "throttllem"):
        assert found[name].limit_actions > 0, name
        assert found[name].joules < full.joules, name
    for name in ("ray_default", "wva", "dynamollm", "throttllem"):
        assert found[name].scale_actions > 0, name
    for name in ("wva", "throttllem"):
        assert found[name].mean_replicas < full.mean_replicas, name
