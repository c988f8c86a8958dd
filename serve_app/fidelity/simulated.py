"""A measured load once more, in the simulator's kernel: the same arrivals, the same replicas.

The compiled kernel of `policies.sim` is driven from event to event, so that replicas come and go at
the measured moments and a step is as long as what else runs on the host makes it (`HostEffects`:
a row of coefficients per state), and as the host itself was slow at that moment (`slowness`). Where
one replica serves and all ratios are 1 this is what `policies.sim.fleet.simulate` computes
(tests/fidelity/test_simulated.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from policies.core.errors import ConfigError
from serve_app.fidelity.host import Beside, HostEffects
from serve_app.fidelity.pulse import WINDOW_S

if TYPE_CHECKING:
    from policies.model.fitted import FittedModel
    from serve_app.fidelity.service import EngineSizes

Floats = NDArray[np.float64]
_ROOM = 1 << 16  # requests of a load, at most
_LEVEL = 0.01  # of the logarithm of slowness


@dataclass(frozen=True, kw_only=True, slots=True)
class Life:
    """One replica, seconds since the load began. `asked_s` None: it was there before."""

    replica: str
    asked_s: float | None = None
    ready_s: float = 0.0
    stopping_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Played:
    """What was played: per request (in the order of arrival) and per moment asked for.

    `tpot_s` NaN: one token only. `joules_at`: of the fleet since the beginning, at each of the
    `moments_s` that were asked for; the last one is the end of the last request.
    """

    ttft_s: Floats
    tpot_s: Floats
    end_s: Floats
    replica: NDArray[np.int64]
    joules_at: Floats
    joules: float
    preemptions: int


def play(  # noqa: PLR0913
    arrivals: Sequence[tuple[float, int, int]],
    lives: Sequence[Life],
    profile: FittedModel,
    sizes: EngineSizes,
    effects: HostEffects,
    *,
    moments_s: Sequence[float] = (),
    slowness: Sequence[float] = (),
) -> Played:
    """Play (arrival in seconds, prompt tokens, output tokens), in the order of arrival.

    `slowness`: the factor on the seconds and joules of every step in each window of `WINDOW_S`; the
    last one goes on; none: 1. ConfigError where the arrivals are not in order or a replica never is
    there.
    """
    times = np.array([arrival_s for arrival_s, _, _ in arrivals], dtype=np.float64)
    if not len(times) or (np.diff(times) < 0.0).any() or len(times) > _ROOM // 2:
        raise ConfigError(f"arrivals: expected 1 to {_ROOM // 2}, in the order of their times")
    what = (profile, sizes, effects, slowness or (1.0,))
    return _Play(arrivals, times, lives, what, sorted(moments_s)).run()


class _Play:
    def __init__(
        self,
        arrivals: Sequence[tuple[float, int, int]],
        times: Floats,
        lives: Sequence[Life],
        what: tuple[FittedModel, EngineSizes, HostEffects, Sequence[float]],
        moments_s: list[float],
    ) -> None:
        from serve_app.simulator.compiled import keep_compiled

        keep_compiled()
        from policies.sim import kernel
        from policies.sim.fleet_state import POWER_OF_TWO, Arrivals, new_fleet

        profile, sizes, effects, slowness = what
        self._kernel, self._effects, self._lives = kernel, effects, lives
        self._idle_watts = (
            profile.power.idle_watts if effects.idle_watts is None else effects.idle_watts
        )
        self._arrivals = Arrivals(
            times + np.arange(len(times)) * 1e-9,  # apart, so that each is known by its time
            np.array([prompt for _, prompt, _ in arrivals], dtype=np.int64),
            np.array([output for _, _, output in arrivals], dtype=np.int64),
        )
        levels = np.round(np.log(np.array(slowness)) / _LEVEL)
        kinds, self._level = np.unique(levels, return_inverse=True)  # per window: which of them
        self._fleet: Any = new_fleet(
            _rows(effects.models(profile), np.exp(_LEVEL * kinds), self._idle_watts),
            replicas=len(lives),
            max_num_seqs=sizes.max_num_seqs,
            budget_tokens=sizes.max_num_batched_tokens,
            kv_capacity_tokens=sizes.kv_capacity_tokens,
            slots=_ROOM,
            done=_ROOM,
            router=POWER_OF_TWO,
        )
        self._moments = moments_s
        self._joules_at: list[float] = []
        self._start_joules = 0.0
        self._next, self._now_s = 0, 0.0

    def run(self) -> Played:
        from policies.sim.fleet_state import DONE

        self._go_on(0.0)
        while self._fleet.numbers[DONE] < len(self._arrivals.times_s):
            until_s = self._next_event_s()
            if until_s == np.inf:
                raise ConfigError("lives: no replica is there for the last requests")
            self._go_on(until_s)
        fleet, count = self._fleet, len(self._arrivals.times_s)
        joules = self._joules()
        self._joules_at += [joules] * (len(self._moments) - len(self._joules_at))
        place = np.searchsorted(self._arrivals.times_s, fleet.done_arrival_s[:count])
        ttft_s, tpot_s, end_s = np.empty(count), np.full(count, np.nan), np.empty(count)
        replica = np.empty(count, dtype=np.int64)
        decoded = fleet.done_output_tokens[:count] - 1
        first_s, last_s = fleet.done_first_s[:count], fleet.done_end_s[:count]
        ttft_s[place] = first_s - fleet.done_arrival_s[:count] + self._effects.request_overhead_s
        tpot_s[place[decoded > 0]] = ((last_s - first_s) / np.maximum(decoded, 1))[decoded > 0]
        end_s[place], replica[place] = last_s, fleet.done_replica[:count]
        return Played(
            ttft_s=ttft_s, tpot_s=tpot_s, end_s=end_s, replica=replica,
            joules_at=np.array(self._joules_at), joules=joules,
            preemptions=int(fleet.preemptions.sum()),
        )  # fmt: skip

    def _next_event_s(self) -> float:
        """When a step ends, a request arrives, a replica comes or goes, or a moment is noted."""
        ahead = [float(self._fleet.end_s.min())]
        if self._next < len(self._arrivals.times_s):
            ahead.append(float(self._arrivals.times_s[self._next]))
        for life in self._lives:
            ahead += [
                time_s
                for time_s in (life.asked_s, life.ready_s, life.stopping_s)
                if time_s is not None and time_s > self._now_s
            ]
        ahead += self._moments[len(self._joules_at) : len(self._joules_at) + 1]
        window = int(self._now_s // WINDOW_S) + 1
        if window < len(self._level):
            ahead.append(window * WINDOW_S)
        return min(ahead)

    def _go_on(self, until_s: float) -> None:
        fleet, kernel = self._fleet, self._kernel
        starting = self._starting(self._now_s)
        if starting:
            watts = self._effects.start_watts
            watts = self._idle_watts if watts is None else watts
            self._start_joules += starting * watts * (until_s - self._now_s)
        self._now_s = max(self._now_s, until_s)
        _, self._next = kernel.advance(fleet, until_s, self._arrivals, self._next, True)
        for index, life in enumerate(self._lives):
            if fleet.on[index] == 0 and life.ready_s <= until_s and not _stopping(life, until_s):
                kernel.accept(fleet, index, until_s)
            if fleet.on[index] and _stopping(life, until_s):
                fleet.accepting[index] = 0
                if fleet.outstanding[index] == 0:
                    kernel.release(fleet, index, until_s)
        self._set_rows(until_s)
        while len(self._joules_at) < len(self._moments) and (
            self._moments[len(self._joules_at)] <= until_s
        ):
            self._joules_at.append(self._joules())

    def _set_rows(self, now_s: float) -> None:
        busy = self._fleet.end_s < np.inf
        window = min(int(now_s // WINDOW_S), len(self._level) - 1)
        first = len(Beside) * int(self._level[window])
        for index in range(len(self._lives)):
            if self._starting(now_s):
                row = Beside.START
            elif busy.sum() > busy[index]:
                row = Beside.BUSY_REPLICA
            else:
                row = Beside.NOTHING
            self._kernel.set_row(self._fleet, index, first + int(row), now_s)

    def _starting(self, now_s: float) -> int:
        return sum(
            life.asked_s is not None and life.asked_s <= now_s < life.ready_s
            for life in self._lives
        )

    def _joules(self) -> float:
        shown = np.zeros(len(self._lives))
        self._kernel.joules_at(self._fleet, self._now_s, shown)
        return float(shown.sum()) + self._start_joules


def _stopping(life: Life, now_s: float) -> bool:
    return life.stopping_s is not None and life.stopping_s <= now_s


def _rows(models: list[FittedModel], slowness: Floats, idle_watts: float) -> Floats:
    """The kernel's coefficients, for each slowness a row per state, all with this idle draw."""
    from policies.sim.coefficients import coefficients
    from policies.sim.fleet_state import IDLE_WATTS

    each = [
        model.corrected(step_time_ratio=ratio, energy_ratio=ratio)
        for ratio in slowness.tolist()
        for model in models
    ]
    rows = np.concatenate([coefficients(model, [None]) for model in each])
    rows[:, IDLE_WATTS] = idle_watts
    return rows
