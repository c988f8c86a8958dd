"""A profile, an engine and runs that are made up; the simulator compiled once for all runs."""

from __future__ import annotations

import os

import pytest

from policies.model.fitted import FittedModel, Residuals, ValidRange
from policies.model.latency import LatencyModel
from policies.model.power import PowerModel
from serve_app.fidelity.observed import Books, Conditions, Observed, Served
from serve_app.fidelity.service import EngineSizes
from serve_app.fidelity.simulated import Life
from serve_app.simulator.compiled import keep_compiled

os.environ["RAY_AUTH_MODE"] = "disabled"  # read once per process
keep_compiled()


@pytest.fixture(scope="session")
def profile():
    return FittedModel(
        name="planted", model="m", device="d",
        latency=LatencyModel(
            t0_s=0.030, a_s_per_seq=1e-3, b_s_per_kv_token=4e-6, c_s_per_prefill_token=1e-3
        ),
        power=PowerModel(
            idle_watts=1.5, e0_joules_per_step=0.25, e1_joules_per_seq=0.01,
            e2_joules_per_kv_token=3e-5, e3_joules_per_prefill_token=8e-3,
        ),
        valid=ValidRange(max_num_seqs=64, max_context_tokens=2048, max_prompt_tokens=2048),
        residuals=Residuals(
            step_time_median_ratio=0.02, step_time_p95_ratio=0.05, energy_median_ratio=0.02,
            samples=20,
        ),
    )  # fmt: skip


@pytest.fixture(scope="session")
def sizes():
    return EngineSizes(max_num_batched_tokens=2048, kv_capacity_tokens=46592, max_num_seqs=64)


@pytest.fixture
def run():
    """`run(...)`: ten requests, one a second, each of 11 tokens in 0.5 s; 4 W."""

    def make(load="steady", *, number=1, ttft_s=0.1, conditions=None, **more):
        requests = tuple(
            Served(
                arrival_s=float(at), end_s=at + ttft_s + 0.5, replica="a", prompt_tokens=50,
                cached_tokens=0, output_tokens=11, ttft_s=ttft_s + at / 1000, tpot_s=0.05,
            )
            for at in range(10)
        )  # fmt: skip
        base = {
            "load": load,
            "round": number,
            "started_at": "2026-01-01T00:00:00+00:00",
            "requests": requests,
            "lives": (Life(replica="a"),),
            "books": tuple(
                Books(time_s=float(t), joules=100.0 + 4.0 * t, num_replicas=1) for t in range(12)
            ),
            "arrived": 10,
            "completed": 10,
            "client_ttft_s": (0.2,) * 10,
            "client_tpot_s": (0.06,) * 10,
            "schedule_lag_p99_s": 0.001,
            "conditions": conditions or Conditions(),
        }
        return Observed(**{**base, **more})

    return make
