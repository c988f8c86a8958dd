"""A model whose every number is known, and the bounds that it is simulated in."""

from __future__ import annotations

from policies.core.types import SLO, Bounds, ControlSettings
from policies.model.fitted import FittedModel, Residuals, ValidRange
from policies.model.latency import LatencyModel
from policies.model.power import CapResponse, PowerModel

MODEL = FittedModel(
    name="planted", model="m", device="d",
    latency=LatencyModel(
        t0_s=0.010, a_s_per_seq=1e-4, b_s_per_kv_token=4e-8, c_s_per_prefill_token=3e-5
    ),
    power=PowerModel(
        idle_watts=120.0, e0_joules_per_step=4.0, e1_joules_per_seq=0.04,
        e2_joules_per_kv_token=3e-5, e3_joules_per_prefill_token=0.018,
        natural_draw_watts=700.0,
        cap_response=CapResponse(c0_watts=94.0, ck_watts=432.0, n=4.0, s_max=1.017),
    ),
    valid=ValidRange(max_num_seqs=256, max_context_tokens=8192, max_prompt_tokens=8192),
    residuals=Residuals(
        step_time_median_ratio=0.02, step_time_p95_ratio=0.05, energy_median_ratio=0.02, samples=20
    ),
)  # fmt: skip
CONTROL = ControlSettings(
    slo=SLO(ttft_s=1.0, tpot_s=0.05), bounds=Bounds(max_replicas=8, max_num_seqs=256)
)
