"""What a policy could do that knows the whole trace: a near-bound for all that do not.

It is told the load of every interval before it comes, and the true model. From them it computes

* replicas: the plan of the fewest joules over the whole trace, by dynamic programming over
  (interval, count): an interval costs `count` times the draw at its share of the load under the
  cheapest limit that holds the SLO by the service table (`policies.model.service`), each start the
  energy of a cold start; starts are asked for a cold start ahead, so that none comes late;
* limits: on each replica the one of the fewest watts that holds the largest share of the next
  `look_s` seconds, and full power while what waits would take more than half of the TTFT target.

Why it is near a bound: for loads given interval by interval the plan is optimal, since draw and
misses of a replica follow from its share alone and starts are all that couples intervals; it never
waits for a report, nor sizes for what might come. What it does not know is the order of arrivals
within an interval and where the router sends them; the table takes them as Poisson. `load_ratio`
moves all loads together, and is to be chosen in hindsight as the smallest that attains the target:
what the table's caution costs is taken out. It is no bound in the strict sense. That is
`policies.least_energy`, which no policy reaches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from policies.core.errors import ConfigError
from policies.core.lengths import bins_of
from policies.core.observe import View
from policies.core.types import (
    Bounds,
    ControlSettings,
    OperatingPoint,
    Reason,
)
from policies.model.fitted import FittedModel
from policies.model.latency import LatencyModel
from policies.model.service import ServiceTable, Workload, service_table
from policies.peer_memory import Memo, number
from policies.peer_parts import Ask, Wish, WishingPeer

Floats = NDArray[np.float64]
BACKLOG_RATIO = 0.5  # of the TTFT target: computing what waits may take so long
POOLS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # of replicas: tables are made for these
BEYOND = 1e3  # a share that nothing holds costs so many times its draw


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Foresight:
    """The load of each `interval_s` seconds from 0, as so many mean requests/s, and all lengths."""

    interval_s: float
    loads_per_s: Floats
    prompt_bins: tuple[float, ...]
    output_bins: tuple[float, ...]

    def most_per_s(self, from_s: float, until_s: float) -> float:
        """The largest load of the intervals from..until; 0 where the trace has ended."""
        first = max(int(from_s // self.interval_s), 0)
        last = max(math.ceil(until_s / self.interval_s), first + 1)
        inside = self.loads_per_s[first:last]
        return float(inside.max()) if len(inside) else 0.0


def foresight_of(
    arrivals_s: Floats,
    prompt_tokens: Floats,
    output_tokens: Floats,
    latency: LatencyModel,
    interval_s: float = 10.0,
) -> Foresight:
    """What is to be known of a trace. A request counts as its time in the engine over the mean
    one's: c p + q p^2/2 for its prompt and o (a + b (p + o/2)) for its answer. ConfigError for a
    trace without requests."""
    prompts, outputs = bins_of(prompt_tokens), bins_of(output_tokens)
    if prompts is None or outputs is None:
        raise ConfigError("the trace is empty: nothing to be foreseen")
    per_token = latency.c_s_per_prefill_token + latency.d_s_per_token_beyond_knee
    context = prompt_tokens + 0.5 * output_tokens
    work_s = (
        per_token * prompt_tokens
        + 0.5 * latency.q_s_per_attended_pair * prompt_tokens * prompt_tokens
        + output_tokens * (latency.a_s_per_seq + latency.b_s_per_kv_token * context)
    )
    place = (arrivals_s // interval_s).astype(np.int64)
    sums = np.bincount(place, weights=work_s / max(float(work_s.mean()), 1e-12))
    return Foresight(
        interval_s=interval_s,
        loads_per_s=sums / interval_s,
        prompt_bins=prompts,
        output_bins=outputs,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Clairvoyant(WishingPeer):
    """Remembers its plan: one object per run. `start_watts` None: the idle draw."""

    NAME: ClassVar[str] = "clairvoyant"

    model: FittedModel
    foresight: Foresight
    load_ratio: float = 1.0
    look_s: float = 10.0
    cold_start_s: float = 60.0
    start_watts: float | None = None
    max_num_batched_tokens: int = 2048
    _plans: Memo[Bounds, list[int]] = field(
        default_factory=Memo, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for key in ("load_ratio", "look_s"):
            if not 0.0 < getattr(self, key) < math.inf:
                raise ConfigError(
                    f"policy clairvoyant: {key} is {getattr(self, key)}; allowed: above 0"
                )

    def _wish(self, ask: Ask, view: View) -> Wish:
        return self._fleet(ask, view) if ask.chooses_replicas else self._replica(ask, view)

    def _fleet(self, ask: Ask, view: View) -> Wish:
        plan = self._plans.get(ask.bounds, lambda: self.plan(ask.settings))
        now_s, step_s = view.now_s, self.foresight.interval_s
        first = min(int(now_s // step_s), len(plan) - 1)
        last = min(math.ceil((now_s + self.cold_start_s) / step_s), len(plan) - 1)
        wanted = max(plan[first : last + 1])
        point = replace(view.present, num_replicas=wanted)
        return Wish(point=point, reason=Reason.CHEAPEST_FEASIBLE)

    def _replica(self, ask: Ask, view: View) -> Wish:
        limits, table, most = self._known(ask.settings, ask.observation.pool_replicas)
        coming = self.foresight.most_per_s(view.now_s, view.now_s + self.look_s)
        share = self.load_ratio * coming / max(ask.observation.pool_replicas, 1)
        holds = most >= share
        if view.fresh:
            waiting = number(view.fresh[0].waiting_prompt_tokens)
            holds &= waiting * self._per_token_s(limits) <= BACKLOG_RATIO * ask.settings.slo.ttft_s
        point = OperatingPoint(
            num_replicas=view.present.num_replicas, max_num_active_seqs=ask.bounds.max_num_seqs
        )
        if not holds.any():
            return Wish(point=point, reason=Reason.SLO_AT_RISK)
        row = int(np.argmin(np.where(holds, table.watts_at(share), np.inf)))
        return Wish(
            point=replace(point, power_limit_watts=limits[row]), reason=Reason.CHEAPEST_FEASIBLE
        )

    def _known(
        self, settings: ControlSettings, pool: int
    ) -> tuple[tuple[float | None, ...], ServiceTable, Floats]:
        """The limits, highest last; what a replica does under each; and the load each one holds."""
        limits = (*settings.bounds.power_limits_watts, None)
        table = service_table(
            self.model,
            limits,
            Workload(
                prompt_bins=self.foresight.prompt_bins,
                output_bins=self.foresight.output_bins,
                ttft_s=settings.slo.ttft_s,
                tpot_s=settings.slo.tpot_s,
                budget_tokens=self.max_num_batched_tokens,
                max_num_seqs=settings.bounds.max_num_seqs,
                pool=max(one for one in POOLS if one <= max(pool, 1)),
            ),
        )
        floor = float(table.missed_ratio[:, 0].min())
        most = table.most_per_s(1.0 - settings.slo.percentile + floor)
        return limits, table, np.maximum.accumulate(most)

    def _per_token_s(self, limits: tuple[float | None, ...]) -> Floats:
        found = []
        for limit in limits:
            latency = self.model.latency_under(limit)
            found.append(latency.c_s_per_prefill_token + latency.d_s_per_token_beyond_knee)
        return np.array(found)

    def plan(self, settings: ControlSettings) -> list[int]:
        """Replicas per interval, the fewest joules of all within bounds."""
        bounds, loads = settings.bounds, self.load_ratio * self.foresight.loads_per_s
        low, high = max(bounds.min_replicas, 1), max(bounds.max_replicas, bounds.min_replicas, 1)
        counts = np.arange(low, high + 1)
        costs = np.empty((len(loads), len(counts)))  # joules of one interval
        for place, count in enumerate(counts):
            _, table, most = self._known(settings, int(count))
            shares = loads / count
            held = most[:, None] >= shares
            watts = np.where(held, table.watts_at(shares), np.inf).min(axis=0)
            over = np.maximum(shares / max(float(most.max()), 1e-9), 1.0) * BEYOND
            full = float(table.watts[-1, -1])
            each = np.where(np.isfinite(watts), watts, full * over)
            costs[:, place] = count * each * self.foresight.interval_s
        watts = self.model.power.idle_watts if self.start_watts is None else self.start_watts
        return cheapest_path(costs, counts, watts * self.cold_start_s)


def cheapest_path(costs: Floats, counts: NDArray[np.int64], start_joules: float) -> list[int]:
    """The count per interval with the least sum of `costs` (intervals, counts) and of
    `start_joules` per replica that is added from one interval to the next. Exact: dynamic
    programming from the end (Bellman)."""
    added = np.maximum(counts[None, :] - counts[:, None], 0) * start_joules  # (from, to)
    ahead = costs[-1].copy()
    choice = np.empty((len(costs), len(counts)), dtype=np.int64)
    for interval in range(len(costs) - 2, -1, -1):
        onward = added + ahead[None, :]
        choice[interval] = onward.argmin(axis=1)
        ahead = costs[interval] + onward.min(axis=1)
    place = int(ahead.argmin())
    path = [int(counts[place])]
    for interval in range(len(costs) - 1):
        place = int(choice[interval, place])
        path.append(int(counts[place]))
    return path
