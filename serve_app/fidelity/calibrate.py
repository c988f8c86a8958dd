"""The constants of the host, from one measured load that is not compared. Pure but for the play.

The load has three states: one replica; one beside a second that starts; two. In each the simulated
TPOT is brought to the measured one in the median by the ratio of step time, and the simulated
joules to the metered ones by the ratio of step energy. The states touch each other (what waits when
a state ends), so all are brought closer together a few times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from policies.core.errors import ConfigError
from serve_app.fidelity.host import Beside, HostEffects, Ratios
from serve_app.fidelity.observed import Observed, start_joules
from serve_app.fidelity.simulated import Played, play

if TYPE_CHECKING:
    from policies.model.fitted import FittedModel
    from serve_app.fidelity.service import EngineSizes

ROUNDS = 8
MIN_REQUESTS = 5  # of a state: fewer say nothing about it
MAX_RATIO = 4.0  # beyond this, or its inverse, something else is wrong than a constant


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """A part of the calibration run that has one state, seconds since its beginning."""

    beside: Beside
    begin_s: float
    end_s: float


def calibrate(
    run: Observed,
    profile: FittedModel,
    sizes: EngineSizes,
    idle_watts: float | None = None,
    slowness: Sequence[float] = (),
) -> HostEffects:
    """The constants that the run shows, beside what `slowness` explains. ConfigError where a state
    has too few requests."""
    states = states_of(run)
    moments = sorted({edge for state in states for edge in (state.begin_s, state.end_s)})
    effects = HostEffects(idle_watts=idle_watts, start_watts=_start_watts(run))
    for _ in range(ROUNDS):
        played = play(
            run.arrivals, run.lives, profile, sizes, effects, moments_s=moments, slowness=slowness
        )
        ratios = {state.beside: _closer(effects, state, run, played, moments) for state in states}
        effects = replace(
            effects,
            ratios=effects.ratios | ratios,
            request_overhead_s=max(0.0, effects.request_overhead_s + _late_s(states, run, played)),
        )
    return effects


def states_of(run: Observed) -> list[State]:
    """The states of a run in which a second replica starts and stops."""
    started = [life for life in run.lives if life.asked_s is not None]
    ends = [life.stopping_s for life in run.lives if life.stopping_s is not None]
    if len(started) != 1 or len(ends) != 1:
        raise ConfigError(f"{run.load}: expected one replica that starts and one that stops")
    asked_s, ready_s = started[0].asked_s or 0.0, started[0].ready_s
    found = [
        State(beside=Beside.NOTHING, begin_s=0.0, end_s=asked_s),
        State(beside=Beside.START, begin_s=asked_s, end_s=ready_s),
        State(beside=Beside.BUSY_REPLICA, begin_s=ready_s, end_s=ends[0]),
    ]
    for state in found:
        if _within(state, run).sum() < MIN_REQUESTS:
            raise ConfigError(
                f"{run.load}: fewer than {MIN_REQUESTS} requests beside {state.beside.name.lower()}"
            )
    return found


def _closer(
    effects: HostEffects, state: State, run: Observed, played: Played, moments: list[float]
) -> Ratios:
    before = effects.ratios[state.beside]
    inside = _within(state, run) & ~np.isnan(played.tpot_s)
    true = np.array([request.tpot_s or math.nan for request in run.requests])
    step_time = float(np.median(true[inside] / played.tpot_s[inside]))
    begin, end = (moments.index(edge) for edge in (state.begin_s, state.end_s))
    metered = _metered_joules(run, state)
    simulated = float(played.joules_at[end] - played.joules_at[begin])
    if state.beside is Beside.START:
        simulated -= (effects.start_watts or 0.0) * (state.end_s - state.begin_s)
    return Ratios(
        step_time=_bounded(before.step_time * step_time),
        step_energy=_bounded(before.step_energy * metered / simulated),
    )


def _metered_joules(run: Observed, state: State) -> float:
    """Of the replicas that served; a starting one tells of its joules when it is ready."""
    if state.beside is Beside.NOTHING:
        return run.joules(state.begin_s, state.end_s)
    two = [one.time_s for one in run.books if one.num_replicas > 1 and one.time_s > state.begin_s]
    told_s = min(two)
    if state.beside is Beside.START:
        one = max(b.time_s for b in run.books if b.time_s < told_s)
        return _stretched(run, (state.begin_s, one), state)
    return _stretched(run, (told_s, state.end_s), state)


def _stretched(run: Observed, seen: tuple[float, float], state: State) -> float:
    """What was seen of a state, as if it had been seen for the whole of it."""
    return run.joules(*seen) * (state.end_s - state.begin_s) / (seen[1] - seen[0])


def _start_watts(run: Observed) -> float | None:
    joules = start_joules(run)
    (life,) = [life for life in run.lives if life.asked_s is not None]
    return None if joules is None else joules / (life.ready_s - (life.asked_s or 0.0))


def _late_s(states: list[State], run: Observed, played: Played) -> float:
    """How much later the first token came than simulated, in the median of the first state."""
    inside = _within(states[0], run)
    true = np.array([request.ttft_s for request in run.requests])
    return float(np.median(true[inside] - played.ttft_s[inside]))


def _within(state: State, run: Observed) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Requests that lay in the state from their arrival to their end."""
    return np.array(
        [
            state.begin_s <= request.arrival_s and request.end_s <= state.end_s
            for request in run.requests
        ]
    )


def _bounded(ratio: float) -> float:
    return min(max(ratio, 1.0 / MAX_RATIO), MAX_RATIO)
