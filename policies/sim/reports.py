"""What each simulated replica reports, as a live one does."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from policies.core.lengths import mean_of
from policies.core.types import ReplicaObservation
from policies.sim import kernel
from policies.sim.fleet_state import NOBODY, Fleet, Floats
from policies.sim.outcome import SimSettings
from policies.sim.recent import Counts, Ended, LengthsSeen, Tails


class Reporter:
    """Watches a fleet tick by tick and makes its replicas' reports."""

    def __init__(self, fleet: Fleet, limits: list[float | None], settings: SimSettings) -> None:
        replicas = len(fleet.on)
        self._fleet, self._limits, self._settings = fleet, limits, settings
        self._tails = Tails(settings.horizon_s, replicas)
        self._counts = Counts(settings.horizon_s, settings.recent_s, replicas)
        self._lengths = LengthsSeen(replicas)
        self._since_s = np.zeros(replicas)
        self._shown = np.zeros(replicas)
        self._drawn: deque[tuple[float, Floats]] = deque([(0.0, np.zeros(replicas))])
        self._ticks = 0

    def appeared(self, replica: int, now_s: float) -> None:
        """A replica is there from now on."""
        self._since_s[replica] = now_s

    def tick(self, now_s: float, ended: Ended) -> float:
        """Look at the fleet; `ended`: since the last tick. Returns the joules shown by all meters
        together."""
        settings = self._settings
        kernel.joules_at(self._fleet, now_s, self._shown)
        self._drawn.append((now_s, self._shown.copy()))
        while self._drawn[1][0] < now_s - settings.meter_lag_s and len(self._drawn) > 2:
            self._drawn.popleft()
        self._counts.add(now_s, self._fleet, self._since_s)
        self._tails.add(now_s, ended)
        if self._ticks % settings.tails_every == 0:
            self._tails.look(now_s, settings.control.slo.percentile)
        self._ticks += 1
        return float(self._shown.sum())

    def reports(self, now_s: float) -> tuple[ReplicaObservation, ...]:
        """One of each replica that takes requests."""
        return tuple(self._of(int(r), now_s) for r in np.flatnonzero(self._fleet.accepting))

    def _of(self, r: int, now_s: float) -> ReplicaObservation:
        fleet, counts, lengths = self._fleet, self._counts, self._lengths
        lengths.look(now_s, fleet, r)
        prompts, outputs = lengths.prompts[r], lengths.outputs[r]
        waiting = int(fleet.waiting[r])
        (from_s, before), (until_s, after) = self._drawn[0], self._drawn[1]
        return ReplicaObservation(
            replica=str(r),
            time_s=now_s,
            num_running=float(fleet.outstanding[r] - waiting),
            num_waiting=float(waiting),
            arrival_rate_per_s=float(counts.rate_per_s[r]),
            prompt_tokens=None if prompts is None else mean_of(prompts),
            output_tokens=None if outputs is None else mean_of(outputs),
            ttft_s=_known(self._tails.ttft_s[r]),
            tpot_s=_known(self._tails.tpot_s[r]),
            draw_watts=float((after[r] - before[r]) / (until_s - from_s)),
            max_num_active_seqs=int(fleet.cap[r]),
            power_limit_watts=self._limits[fleet.row[r]],
            pack_seqs=int(fleet.pack_seqs[r]) or None,
            pack_tokens=int(fleet.pack_tokens[r]) if fleet.pack_seqs[r] else None,
            waiting_prompt_tokens=float(_backlog_tokens(fleet, r)),
            recent_rate_per_s=float(counts.recent_per_s[r]),
            num_judged=float(fleet.judged[r]),
            num_late=float(fleet.late[r]),
            num_slow=float(fleet.slow[r]),
            prompt_bins=prompts,
            output_bins=outputs,
        )


def _backlog_tokens(fleet: Fleet, r: int) -> int:
    """Prompt tokens that wait, the rest of the one that was cut, and those in the step."""
    slot = int(fleet.partial[r])
    rest = 0
    if slot != NOBODY:
        rest = int(fleet.prompt_tokens[slot] + fleet.made_tokens[slot] - fleet.partial_tokens[r])
    step = int(fleet.chunk_tokens[r]) if fleet.end_s[r] < math.inf else 0
    return int(fleet.waiting_tokens[r]) + rest + step


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
