"""`python -m serve_app.decision_bench`: how long a fleet decision takes inside Ray's controller.

Starts Ray Serve with one trivial deployment whose autoscaling policy is `ControllerBench`. Ray's
controller calls it as it calls `EnergyPolicy`; at its first call it plays, in that process, fleets
of several sizes through an `EnergyPolicy`: Ray's own context class, filled with reports made as
replicas make them, new ones for every tick. Only the fleets are invented.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from policies.core.lengths import bins_of
from policies.core.types import Bounds, ControlSettings, ReplicaObservation
from policies.model.online import Correction
from serve_app.ray_policy import EnergyPolicy
from serve_app.replica_report import report

PROFILE = "llama-3.1-8b-instruct@h100"
WAIT_S = 300.0
TARGETS_S = {64: 0.002, 1000: 0.020}  # what the decision may take, by replicas
_PROMPTS, _OUTPUTS = bins_of(range(50, 4000, 40)), bins_of(range(20, 600, 5))
_REST_S = 0.02
_CONTROL = ControlSettings(bounds=Bounds(max_num_seqs=256))


class ControllerBench:
    """An autoscaling policy that measures another one, once, and then holds the target.

    `counts`: fleet sizes; `ticks`: of each; `out`: the file for the seconds of every tick.
    """

    def __init__(self, profile: dict[str, Any], counts: list[int], ticks: int, out: str) -> None:
        self._profile, self._counts, self._ticks, self._out = profile, counts, ticks, Path(out)
        self._done = False

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        if not self._done:
            self._done = True
            found = {count: self._play(count, context) for count in self._counts}
            new = self._out.with_suffix(".new")
            new.write_text(json.dumps(found), encoding="utf-8")
            new.replace(self._out)
        return context.target_num_replicas, {}

    def _play(self, count: int, context: Any) -> list[float]:
        policy = EnergyPolicy(settings={}, profile=self._profile, packed=True)
        state: dict[str, Any] = {}
        seconds = []
        for tick in range(self._ticks):
            seen = fleet_context(context, count, tick, state)
            gc.collect()  # of what the line above left behind, which is not the policy's
            begun_s = time.perf_counter()
            _, state = policy(seen)
            seconds.append(time.perf_counter() - begun_s)
            # Ray asks again after a second: by then the news of this tick are on their way.
            time.sleep(_REST_S)
        return seconds


def fleet_context(context: Any, count: int, tick: int, state: dict[str, Any]) -> Any:
    """Ray's context for a fleet of `count` replicas at second `tick`: load that swings by a third
    within ten minutes, a little different on each, with lengths and steps that drift."""
    from ray.serve._private.common import ReplicaID, TimeStampedValue

    now_s = 1e6 + tick
    ids = [
        ReplicaID(unique_id=f"{place:08x}", deployment_id=context.deployment_id)
        for place in range(count)
    ]
    raw: dict[str, dict[Any, list[Any]]] = {}
    for place, one in enumerate(ids):
        for name, value in _reported(place, tick).items():
            raw.setdefault(name, {})[one] = [TimeStampedValue(now_s - 0.5, value)]
    return type(context)(
        deployment_id=context.deployment_id, deployment_name=context.deployment_name,
        app_name=context.app_name, current_num_replicas=count, target_num_replicas=count,
        running_replicas=ids, total_num_requests=0.0, total_queued_requests=0.0,
        aggregated_metrics=dict, raw_metrics=lambda: raw, capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=2 * count, policy_state=state, last_scale_up_time=None,
        last_scale_down_time=None, current_time=now_s, config=context.config,
    )  # fmt: skip


def _reported(place: int, tick: int) -> dict[str, int]:
    rate = 8.0 * (1.0 + math.sin(tick / 95.0) / 3.0) * (1.0 + 0.001 * place)
    assert _PROMPTS is not None
    assert _OUTPUTS is not None
    longer = 1.0 + 0.001 * tick
    seen = ReplicaObservation(
        replica="", time_s=0.0, num_running=60.0, num_waiting=1.0, arrival_rate_per_s=rate,
        prompt_tokens=2000.0, output_tokens=300.0, ttft_s=0.5, tpot_s=0.05, draw_watts=450.0,
        max_num_active_seqs=128, power_limit_watts=450.0, pack_seqs=90, pack_tokens=4096,
        waiting_prompt_tokens=1500.0, recent_rate_per_s=rate, num_judged=1000.0 + rate * tick,
        num_late=8.0 + 0.05 * tick, num_slow=2.0, margin=0.02, pace_margin=-0.01,
        prompt_bins=tuple(longer * one for one in _PROMPTS), output_bins=_OUTPUTS,
    )  # fmt: skip
    learned = Correction(step_time_ratio=math.exp(0.01 * (tick // 60)))
    return report(seen, _CONTROL, learned, max_num_batched_tokens=2048)


def measure(counts: list[int], ticks: int) -> dict[str, Any]:
    """Seconds of every tick by fleet size; starts and stops Ray. TimeoutError after 5 minutes."""
    import ray
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    from serve_app.deciders import load_profile

    model = load_profile(PROFILE)
    assert model is not None, "a named profile is loaded"
    with TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        given = {"profile": model.to_dict(), "counts": counts, "ticks": ticks, "out": str(out)}
        policy = AutoscalingPolicy(
            policy_function="serve_app.decision_bench:ControllerBench", policy_kwargs=given
        )
        scaling = AutoscalingConfig(min_replicas=1, max_replicas=2, policy=policy)
        try:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
            serve.start(http_options={"location": "NoServer"})
            answer = serve.deployment(_Nothing, autoscaling_config=scaling, name="bench").bind()
            serve.run(answer, name="bench", route_prefix=None)
            deadline_s = time.monotonic() + WAIT_S
            while not out.exists():
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"the controller wrote nothing within {WAIT_S:g} s")
                time.sleep(0.5)
            found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        finally:
            serve.shutdown()
            ray.shutdown()
    return found


class _Nothing:
    def __call__(self) -> None:
        return None


def summary(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Per fleet: replicas, median, p99, maximum and target in seconds, over all ticks, the first
    among them."""
    rows = []
    for count, seconds in found.items():
        ordered = sorted(seconds)
        rows.append(
            {
                "replicas": int(count),
                "ticks": len(ordered),
                "median_s": ordered[len(ordered) // 2],
                "p99_s": ordered[min(math.ceil(0.99 * len(ordered)), len(ordered)) - 1],
                "max_s": ordered[-1],
                "target_s": TARGETS_S.get(int(count)),
            }
        )
    return rows


def main() -> int:
    """Print the times; 0 if every median is within its target, else 1."""
    from serve_app.profiler.host import host_facts, versions

    parser = argparse.ArgumentParser(description="Time fleet decisions in Ray's controller.")
    parser.add_argument("--ticks", type=int, default=200, help="per fleet size")
    parser.add_argument("--out", type=Path, help="folder for result.json")
    options = parser.parse_args()
    rows = summary(measure([1, *TARGETS_S], options.ticks))
    for row in rows:
        times = ", ".join(
            f"{name} {1e3 * row[key]:.2f} ms"
            for name, key in (("median", "median_s"), ("p99", "p99_s"), ("max", "max_s"))
        )
        target = row["target_s"]
        asked = "" if target is None else f" (asked: {1e3 * target:g} ms)"
        print(f"{row['replicas']:5d} replicas, {row['ticks']} ticks, measured: {times}{asked}")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        now = datetime.now(tz=UTC).isoformat(timespec="seconds")
        page = {"measured": True, "date": now, "machine": host_facts(), "versions": versions()}
        text = json.dumps({**page, "profile": PROFILE, "decisions": rows}, indent=1)
        (options.out / "result.json").write_text(text + "\n", encoding="utf-8")
    return int(any(row["target_s"] and row["median_s"] > row["target_s"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
