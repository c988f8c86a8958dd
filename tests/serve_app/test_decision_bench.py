"""The benchmark of fleet decisions: its fleets are ones that the policy takes, and changes with."""

import json

from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext
from small_model import MODEL

from serve_app.decision_bench import ControllerBench, fleet_context, summary
from serve_app.fleet_reports import latest_reports
from serve_app.ray_policy import EnergyPolicy


def given():
    return AutoscalingContext(
        deployment_id=DeploymentID(name="bench", app_name="bench"), deployment_name="bench",
        app_name="bench", current_num_replicas=1, target_num_replicas=2, running_replicas=[],
        total_num_requests=0.0, total_queued_requests=0.0, aggregated_metrics=dict,
        raw_metrics=dict, capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=2,
        policy_state={}, last_scale_up_time=None, last_scale_down_time=None, current_time=1.0,
        config=AutoscalingConfig(min_replicas=1, max_replicas=2),
    )  # fmt: skip


def test_every_tick_brings_new_reports_that_the_joint_policy_decides_on():
    policy, state = EnergyPolicy(settings={}, profile=MODEL.to_dict(), packed=True), {}
    rates = set()
    for tick in range(3):
        seen = fleet_context(given(), 8, tick, state)
        found = latest_reports(seen)
        assert len(found) == 8
        rates.add(sum(found.column("arrival_rate_per_s")))
        wanted, state = policy(seen)
        assert 1 <= wanted <= 16
        assert state["jouleserve"]["last_decision"]["notes"][0].startswith("load ")
    assert len(rates) == 3
    assert state["jouleserve_decision_s"]["count"] == 3


def test_it_measures_once_and_holds_the_target(tmp_path):
    out = tmp_path / "found.json"
    bench = ControllerBench(MODEL.to_dict(), [1, 8], 4, str(out))
    assert bench(given()) == (2, {})
    found = json.loads(out.read_text())
    out.unlink()
    assert bench(given()) == (2, {})
    assert not out.exists()
    rows = summary(found)
    assert [(row["replicas"], row["ticks"], row["target_s"]) for row in rows] == [
        (1, 4, None),
        (8, 4, None),
    ]
    assert all(0.0 < row["median_s"] <= row["p99_s"] == row["max_s"] for row in rows)
