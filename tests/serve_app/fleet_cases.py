"""Reports as replicas send them, and Ray's own context class that holds them."""

from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from policies.core.lengths import bins_of
from policies.core.types import Bounds, ControlSettings, ReplicaObservation
from serve_app.replica_report import KEY, VALUES, read, report, written

DEPLOYMENT = DeploymentID(name="EnergyLLMServer:m", app_name="llm")


def replica_id(i):
    return ReplicaID(unique_id=f"r{i}", deployment_id=DEPLOYMENT)


def stats(rate=1.0, **more):
    values = {
        "num_running": 2.0,
        "num_waiting": 0.0,
        "arrival_rate_per_s": rate,
        "prompt_tokens": 50.0,
        "output_tokens": 50.0,
    } | more
    observation = ReplicaObservation(replica="r", time_s=0.0, max_num_active_seqs=32, **values)
    return report(observation, ControlSettings(bounds=Bounds(max_num_seqs=64)))


def but(one, **values):
    """The report with other values; NaN: not known."""
    return written((dict(zip(VALUES, read([one[KEY]])[0], strict=True)) | values).values())


BINS = {"prompt_bins": bins_of([50] * 20), "output_bins": bins_of([50] * 20)}


def told(rate=1.0, **more):
    """With everything that the joint policy decides on."""
    counted = {"num_judged": 512.0, "num_late": 0.0, "num_slow": 0.0}
    learned = {"recent_rate_per_s": rate, "margin": 0.0, "pace_margin": 0.0, **counted}
    return stats(rate, **BINS, **learned, **more)


def context(per_replica, now_s=1000.0, target=None, age_s=0.5, state=None):
    raw = {}
    for i, values in enumerate(per_replica):
        for name, value in values.items():
            raw.setdefault(name, {})[replica_id(i)] = [TimeStampedValue(now_s - age_s, value)]
    count = len(per_replica)
    return AutoscalingContext(
        deployment_id=DEPLOYMENT,
        deployment_name=DEPLOYMENT.name,
        app_name="llm",
        current_num_replicas=count,
        target_num_replicas=count if target is None else target,
        running_replicas=[replica_id(i) for i in range(count)],
        total_num_requests=0.0,
        total_queued_requests=0.0,
        aggregated_metrics=dict,
        raw_metrics=lambda: raw,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        policy_state=state or {},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=now_s,
        config=AutoscalingConfig(min_replicas=1, max_replicas=8),
    )
