"""Random models, loads, targets and boxes: whatever the formulas must hold for."""

import json
from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st

from policies.core.objective import Candidates
from policies.core.types import SLO, Load
from policies.model.fitted import Bands, FittedModel
from policies.model.latency import LatencyModel
from policies.model.power import CapResponse, PowerModel

DATA = Path(__file__).parents[1] / "data" / "h100_llama8b.json"
H100 = FittedModel.from_dict(json.loads(DATA.read_text()))
BANDS = Bands(step_time_ratio=0.05, prefill_ratio=0.1, energy_ratio=0.04, power_limit_ratio=0.1)
LIMITS = (None, 700.0, 500.0, 400.0, 300.0)


def _latency(t0, a, b, c, q, knee, share):
    """A knee anywhere, as steep as it may be or less: d knee <= t0."""
    return LatencyModel(
        t0_s=t0, a_s_per_seq=a, b_s_per_kv_token=b, c_s_per_prefill_token=c,
        q_s_per_attended_pair=q, knee_tokens=knee,
        d_s_per_token_beyond_knee=share * t0 / knee if knee else 0.0,
    )  # fmt: skip


models = st.builds(
    replace,
    st.just(H100),
    bands=st.sampled_from([Bands(), BANDS]),
    latency=st.builds(
        _latency,
        st.floats(1e-4, 0.1),
        st.floats(0.0, 1e-3),
        st.floats(0.0, 1e-6),
        st.floats(0.0, 1e-3),
        st.floats(0.0, 1e-8),
        st.one_of(st.just(0.0), st.floats(1.0, 300.0)),
        st.floats(0.0, 1.0),
    ),
    power=st.builds(
        PowerModel,
        idle_watts=st.floats(0.0, 300.0),
        e0_joules_per_step=st.floats(0.0, 20.0),
        e1_joules_per_seq=st.floats(0.0, 1.0),
        e2_joules_per_kv_token=st.floats(0.0, 1e-4),
        e3_joules_per_prefill_token=st.floats(0.0, 1.0),
        e5_joules_per_token_beyond_knee=st.floats(0.0, 0.1),
        knee_tokens=st.floats(0.0, 300.0),
        natural_draw_watts=st.one_of(st.none(), st.floats(300.0, 800.0)),
        cap_response=st.just(CapResponse(c0_watts=94.0, ck_watts=432.0, n=4.0, s_max=1.017)),
        num_devices=st.sampled_from([1, 4]),
    ),
)
loads = st.builds(
    Load,
    arrival_rate_per_s=st.one_of(st.floats(1e-6, 0.01), st.floats(0.01, 50.0), st.just(1e5)),
    prompt_tokens=st.floats(0.0, 2000.0),
    output_tokens=st.floats(1.0, 1000.0),
)
slos = st.builds(
    SLO,
    ttft_s=st.floats(0.05, 20.0),
    tpot_s=st.floats(0.009, 0.5),
    percentile=st.sampled_from([0.6, 0.9, 0.95, 0.99, 0.999]),
)


def _box(replicas, more, cap, wider, limits):
    return Candidates(
        replicas=(replicas, replicas + more), caps=(cap, min(cap + wider, 307)), limits=limits
    )


boxes = st.builds(
    _box,
    st.integers(1, 40),
    st.integers(0, 4),
    st.integers(1, 307),
    st.integers(0, 12),
    st.sampled_from([(None,), LIMITS, (400.0, 300.0)]),
)
