"""A GPU whose response to a power limit is known, and samples of it."""

from __future__ import annotations

import numpy as np

from policies.model.fitted import FittedModel, Residuals, ValidRange
from policies.model.latency import LatencyModel
from policies.model.power import CapResponse, PowerModel
from serve_app.profiler.limits import blocks, limit_points
from serve_app.profiler.samples import Kind, Phase, Sample
from serve_app.profiler.sweep import SweepSettings

FOUND_WATTS = NATURAL_WATTS = 700.0
LIMITS = (250.0, 300.0, 400.0, 500.0, 600.0)
RESPONSE = CapResponse(c0_watts=94.0, ck_watts=432.0, n=4.0, s_max=1.017)
SETTINGS = SweepSettings(max_num_seqs=256, max_model_len=4096)
POINTS = limit_points(SETTINGS)


def planted_model(response=None, *, num_devices=1, **latency):
    """Llama-3.1-8B on an H100, about; `response`: what a limit does to it."""
    return FittedModel(
        name="planted@gpu",
        model="planted",
        device="planted",
        latency=LatencyModel(
            **{
                "t0_s": 0.007,
                "a_s_per_seq": 7e-5,
                "b_s_per_kv_token": 3e-8,
                "c_s_per_prefill_token": 2.5e-5,
                "d_s_per_token_beyond_knee": 4e-5,
                "knee_tokens": 160.0,
                **latency,
            }
        ),
        power=PowerModel(
            idle_watts=120.0,
            e0_joules_per_step=3.3,
            e1_joules_per_seq=0.065,
            e2_joules_per_kv_token=1e-5,
            e3_joules_per_prefill_token=0.017,
            natural_draw_watts=NATURAL_WATTS,
            cap_response=response,
            num_devices=num_devices,
        ),
        valid=ValidRange(max_num_seqs=256, max_context_tokens=4096, max_prompt_tokens=2048),
        residuals=Residuals(
            step_time_median_ratio=0.02,
            step_time_p95_ratio=0.05,
            energy_median_ratio=0.03,
            samples=40,
        ),
    )


def natural_watts(point):
    """What a point draws without a limit, per GPU: prompts most, small batches least."""
    if point.kind is Kind.PREFILL:
        return NATURAL_WATTS
    return 480.0 + 20.0 * float(np.log2(point.num_seqs))


def planted_sample(model, point, limit_watts, repeat, *, slower=1.0, **changed):
    """What a window shows at a point under a limit that is in force; `slower`: a drift, noise."""
    prompts = 1 if point.prompt_tokens else 0
    batch = {
        "num_seqs": float(point.num_seqs + prompts),
        "kv_tokens": float(point.num_seqs * (point.context_tokens + 20) + point.prompt_tokens),
        "prefill_tokens": float(point.prompt_tokens),
        "attended_pairs": 0.5 * point.prompt_tokens**2,
    }
    time_s = slower * model.latency_under(limit_watts).step_time_s(*batch.values())
    gpus = model.power.num_devices
    draw_watts = gpus * min(natural_watts(point), limit_watts)
    fields = {
        "point": point.name,
        "kind": point.kind,
        "phase": Phase.STEADY,
        "repeat": repeat,
        "device": "planted",
        "window_s": 1.0,
        "steps": 1.0 / time_s,
        "step_time_s": time_s,
        "step_time_p95_s": 1.1 * time_s,
        "joules_per_step": (draw_watts + 150.0) * time_s,  # the host's CPUs draw as well
        "draw_watts": draw_watts + 150.0,
        "gpu_draw_watts": draw_watts,
        "source": "counter",
        "coverage_ratio": 1.0,
        "power_limit_watts": limit_watts,
        **batch,
        **changed,
    }
    return Sample(**fields)


def planted_sweep(model, *, limits=LIMITS, points=POINTS, repeats=2, noise=0.0, drift=0.0, seed=0):
    """The samples of a whole limit sweep; `drift`: how much slower the machine is at its end."""
    rng = np.random.default_rng(seed)
    runs = [
        (point, block.limit_watts or FOUND_WATTS, block.repeat)
        for block in blocks(points, limits, repeats=repeats, seed=seed)
        for point in block.points
    ]
    return [
        planted_sample(
            model,
            *run,
            slower=(1.0 + drift * k / len(runs)) * (1.0 + noise * rng.standard_normal()),
        )
        for k, run in enumerate(runs)
    ]
