"""A planted model and hand-made reports for the joint policy."""

from __future__ import annotations

from policies.core.lengths import bins_of
from policies.core.types import (
    SLO,
    Bounds,
    ControlSettings,
    ControlState,
    Knob,
    Observation,
    ReplicaObservation,
)
from policies.energy_slo import EnergySlo
from policies.model.fitted import FittedModel, Residuals, ValidRange
from policies.model.latency import LatencyModel
from policies.model.power import CapResponse, PowerModel

LIMITS = (200.0, 300.0, 400.0, 500.0, 600.0)
MODEL = FittedModel(
    name="planted", model="m", device="d",
    latency=LatencyModel(
        t0_s=0.007, a_s_per_seq=6e-5, b_s_per_kv_token=4e-8, c_s_per_prefill_token=2.6e-5
    ),
    power=PowerModel(
        idle_watts=120.0, e0_joules_per_step=3.2, e1_joules_per_seq=0.04,
        e2_joules_per_kv_token=3e-5, e3_joules_per_prefill_token=0.018,
        natural_draw_watts=690.0,
        cap_response=CapResponse(c0_watts=94.0, ck_watts=432.0, n=4.0, s_max=1.017),
    ),
    valid=ValidRange(max_num_seqs=256, max_context_tokens=8192, max_prompt_tokens=8192),
    residuals=Residuals(
        step_time_median_ratio=0.02, step_time_p95_ratio=0.05, energy_median_ratio=0.02, samples=20
    ),
)  # fmt: skip
SETTINGS = ControlSettings(
    slo=SLO(ttft_s=1.0, tpot_s=0.1),
    bounds=Bounds(min_replicas=1, max_replicas=64, max_num_seqs=256, power_limits_watts=LIMITS),
)
PROMPTS, OUTPUTS = bins_of([300, 600, 1200, 2400]), bins_of([50, 150, 300])
FLEET = frozenset({Knob.NUM_REPLICAS})
REPLICA = frozenset({Knob.MAX_NUM_ACTIVE_SEQS, Knob.POWER_LIMIT, Knob.PACK_SEQS})
POLICY = EnergySlo(model=MODEL)


def report(now_s=100.0, name="a", **changes):
    values = {
        "num_running": 10.0, "num_waiting": 0.0, "arrival_rate_per_s": 5.0,
        "recent_rate_per_s": 5.0, "prompt_tokens": 1125.0, "output_tokens": 166.0,
        "max_num_active_seqs": 256, "waiting_prompt_tokens": 0.0, "num_judged": 0.0,
        "num_late": 0.0, "num_slow": 0.0, "prompt_bins": PROMPTS, "output_bins": OUTPUTS,
        "margin": 0.0, "pace_margin": 0.0,
    }  # fmt: skip
    return ReplicaObservation(replica=name, time_s=now_s, **{**values, **changes})


def decide(one, state=None, settings=SETTINGS):
    seen = Observation(now_s=one.time_s, replicas=(one,), observed_replicas=1, requested_replicas=1)
    return POLICY.decide(seen, state or ControlState(), settings, REPLICA)


def fleet(now_s, replicas, rate, state=None, requested=None, settings=SETTINGS, **changes):
    each = rate / max(replicas, 1)
    known = {"arrival_rate_per_s": each, "recent_rate_per_s": each, "num_judged": 500.0}
    reports = tuple(report(now_s, str(k), **{**known, **changes}) for k in range(replicas))
    seen = Observation(
        now_s=now_s, replicas=reports, observed_replicas=replicas,
        requested_replicas=replicas if requested is None else requested, pool_replicas=replicas,
    )  # fmt: skip
    return POLICY.decide(seen, state or ControlState(), settings, FLEET)
