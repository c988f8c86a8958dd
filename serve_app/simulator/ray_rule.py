"""Ray Serve's own autoscaler on simulated time: Ray's code, not a retelling of it.

Three parts of Ray (2.60) are run as they are, from a private copy of their modules whose `time` is
the simulated clock; the modules that the process shares are not touched.

- `ray.serve._private.autoscaling_state.DeploymentAutoscalingState._merge_and_aggregate_timeseries`:
  the time-weighted mean (or peak, or trough) of the ongoing requests over `look_back_period_s`,
- `ray.serve.autoscaling_policy.replica_queue_length_autoscaling_policy`: desired = ongoing /
  target_ongoing_requests,
- `ray.serve.autoscaling_policy._apply_autoscaling_config`: factors and delays. Bounds are applied
  by whoever asks, after the delays, as Ray does.

What Ray sees is made here as its handles make it: the ongoing requests (running + waiting) of every
running replica, one sample per report, none older than `look_back_period_s`, plus what is queued
for no replica yet. Ray sums the replicas' series from the first moment at which all of them have
one, so a new replica shortens the look-back to its own age, and a stopped one takes its past with
it. All reports of a tick carry one time, so that sum is one addition per tick. Ray's handles send
their samples every 10 s; here the rule sees each at once, which only helps it.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections import deque
from dataclasses import asdict, dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

from pydantic import ValidationError

from policies.core.errors import ConfigError
from policies.core.types import Observation

# Ray bounds a decision after its rule; the rule itself only needs a valid configuration.
_MOST_REPLICAS = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class RayOptions:
    """`AutoscalingConfig`'s options with Ray's defaults. A factor None: 1."""

    target_ongoing_requests: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    upscaling_factor: float | None = None
    downscaling_factor: float | None = None
    look_back_period_s: float = 30.0
    aggregation_function: str = "mean"


class RayRule:
    """How many replicas Ray wants for an observation; one object per run, one call per tick.

    Raises ConfigError for options that Ray refuses.
    """

    def __init__(self, options: RayOptions | None = None) -> None:
        from ray.serve._private.common import DeploymentID, TimeStampedValue
        from ray.serve.config import AutoscalingContext

        self._config = _config(options or RayOptions())
        self._clock = _Clock()
        policy = _own_copy("ray.serve.autoscaling_policy", self._clock)
        state = _own_copy("ray.serve._private.autoscaling_state", self._clock)
        self._decide = policy._apply_autoscaling_config(
            policy.replica_queue_length_autoscaling_policy
        )
        self._aggregate = state.DeploymentAutoscalingState._merge_and_aggregate_timeseries
        self._holder = SimpleNamespace(_config=self._config)  # all that Ray's method asks it for
        self._context, self._sample = AutoscalingContext, TimeStampedValue
        self._deployment = DeploymentID(name="simulated", app_name="simulated")
        self._policy_state: dict[str, Any] = {}
        self._rows: deque[_Row] = deque()
        self._series: list[Any] = []  # the sum over the replicas that run now

    def __call__(self, observation: Observation) -> int:
        """The replicas that Ray wants, before bounds."""
        self._clock.now_s = observation.now_s
        self._look(observation)
        target = observation.requested_replicas
        context = self._context(
            deployment_id=self._deployment,
            deployment_name=self._deployment.name,
            app_name=self._deployment.app_name,
            current_num_replicas=observation.observed_replicas,
            target_num_replicas=target,
            running_replicas=[],
            total_num_requests=self.ongoing_requests(),
            total_queued_requests=_count(observation.num_queued),
            aggregated_metrics=None,
            raw_metrics=None,
            capacity_adjusted_min_replicas=0,
            capacity_adjusted_max_replicas=_MOST_REPLICAS,
            policy_state=self._policy_state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=observation.now_s,
            config=self._config,
        )
        decision, self._policy_state = self._decide(context)
        wanted: int = math.ceil(decision)
        return wanted

    def ongoing_requests(self) -> float:
        """Ray's aggregate of what was seen so far, at the time of the last call."""
        if not self._series:
            return 0.0
        return float(self._aggregate(self._holder, [self._series]))

    def _look(self, observation: Observation) -> None:
        """Take a new report of the fleet into the series; drop what is too old."""
        row = _row(observation)
        last = self._rows[-1] if self._rows else None
        if row is None or (last is not None and row.time_s <= last.time_s):
            return
        self._rows.append(row)
        oldest_s = row.time_s - self._config.look_back_period_s
        while len(self._rows) > 1 and self._rows[0].time_s <= oldest_s:
            self._rows.popleft()
        if last is not None and last.names == row.names:
            self._series.append(self._sample(row.time_s, row.total))
            while len(self._series) > 1 and self._series[0].timestamp <= oldest_s:
                del self._series[0]
            return
        self._series = [self._sample(one.time_s, one.total_of(row.names)) for one in self._since()]

    def _since(self) -> list[_Row]:
        """The rows since all replicas of the newest one have been there."""
        found: list[_Row] = []
        for row in reversed(self._rows):
            if not row.names >= self._rows[-1].names:
                break
            found.append(row)
        return found[::-1]


class _Clock:
    """Stands where Ray's modules have `time`."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    time_s: float
    names: frozenset[str]
    ongoing: tuple[tuple[str, float], ...]
    queued: float
    total: float

    def total_of(self, names: frozenset[str]) -> float:
        return self.queued + math.fsum(count for name, count in self.ongoing if name in names)


def _row(observation: Observation) -> _Row | None:
    times = [one.time_s for one in observation.replicas if math.isfinite(one.time_s)]
    time_s = max(times, default=observation.now_s)
    if not math.isfinite(time_s):
        return None
    ongoing = tuple(
        (one.replica, _count(one.num_running) + _count(one.num_waiting))
        for one in observation.replicas
    )
    queued = _count(observation.num_queued)
    return _Row(
        time_s=time_s,
        names=frozenset(name for name, _ in ongoing),
        ongoing=ongoing,
        queued=queued,
        total=queued + math.fsum(count for _, count in ongoing),
    )


def _count(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) and value > 0.0 else 0.0


def _config(options: RayOptions) -> Any:
    from ray.serve.config import AutoscalingConfig

    try:
        with warnings.catch_warnings():
            # Of a look-back below Ray's push interval (10 s), which simulated reports do not have.
            warnings.simplefilter("ignore", FutureWarning)
            return AutoscalingConfig(min_replicas=0, max_replicas=_MOST_REPLICAS, **asdict(options))
    except (ValidationError, ValueError) as error:
        raise ConfigError(f"policy ray_default: Ray refuses the options: {error}") from error


def _own_copy(name: str, clock: _Clock) -> ModuleType:
    """Ray's module, run once more under the same name and known to nobody else, on this clock."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ConfigError(f"policy ray_default: this Ray has no module {name}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.time = clock  # type: ignore[attr-defined]
    return module
