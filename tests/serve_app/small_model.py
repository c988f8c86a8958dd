"""The fitted model of a small CPU engine."""

from __future__ import annotations

from policies.model.fitted import FittedModel, Residuals, ValidRange
from policies.model.latency import LatencyModel
from policies.model.power import PowerModel

MODEL = FittedModel(
    name="small",
    model="m",
    device="cpu",
    latency=LatencyModel(
        t0_s=0.02, a_s_per_seq=0.001, b_s_per_kv_token=0.0, c_s_per_prefill_token=0.0005
    ),
    power=PowerModel(
        idle_watts=1.0,
        e0_joules_per_step=0.1,
        e1_joules_per_seq=0.005,
        e2_joules_per_kv_token=0.0,
        e3_joules_per_prefill_token=0.002,
    ),
    valid=ValidRange(max_num_seqs=64, max_context_tokens=4096, max_prompt_tokens=2048),
    residuals=Residuals(
        step_time_median_ratio=0.05,
        step_time_p95_ratio=0.1,
        energy_median_ratio=0.05,
        samples=100,
    ),
)
