"""The table that the joint policy plans with, beside simulated fleets."""

from __future__ import annotations

import numpy as np
import pytest
from test_fleet import MODEL, settings

from policies.core.lengths import bins_of
from policies.core.types import SLO, Bounds, ControlSettings
from policies.model.service import Workload, service_table
from policies.sim.fleet import simulate
from policies.static import Static

pytestmark = pytest.mark.slow
SLO_ = SLO(ttft_s=1.0, tpot_s=0.1)
LIMIT = 400.0


@pytest.mark.parametrize("pool", [1, 3, 6])
@pytest.mark.parametrize("kind", ["chat", "code"])
def test_misses_and_draw_are_those_of_simulated_fleets(pool, kind):
    """The load at which the table says that 0.8 % miss is right within 15 %."""
    rng = np.random.default_rng(7)
    prompts = np.clip(rng.lognormal(7.3 if kind == "code" else 6.6, 0.9, 60_000), 16, 7_500)
    outputs = np.clip(rng.lognormal(2.0 if kind == "code" else 4.8, 0.9, 60_000), 1, 700)
    load = Workload(
        prompt_bins=bins_of(prompts), output_bins=bins_of(outputs), ttft_s=1.0, tpot_s=0.1,
        pool=pool,
    )  # fmt: skip
    table = service_table(MODEL, (LIMIT,), load)
    rate = float(table.most_per_s(0.008)[0])
    count = 8_000 * pool
    gaps = rng.exponential(1.0, count)
    tokens = prompts[:count].astype(np.int64), outputs[:count].astype(np.int64)
    control = ControlSettings(
        slo=SLO_, bounds=Bounds(max_replicas=pool, power_limits_watts=(LIMIT,))
    )
    options = settings(
        control=control, initial_replicas=pool, limit_settle_s=0.0, tick_s=5.0, fleet_every=10**9
    )
    policy = Static(num_replicas=pool, power_limit_watts=LIMIT)
    less, more = (
        simulate([(np.cumsum(gaps / (share * rate * pool)), *tokens)], MODEL, policy, options)
        for share in (0.87, 1.15)
    )
    assert less.attainment_ratio > 1.0 - 0.008 * 1.5
    assert more.attainment_ratio < 1.0 - 0.008
    watts = less.joules / less.duration_s / pool
    assert watts == pytest.approx(float(table.watts_at(0.87 * rate)[0]), rel=0.1)
