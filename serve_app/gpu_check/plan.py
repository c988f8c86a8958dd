"""What the GPUs are made to do, phase by phase."""

from __future__ import annotations

from dataclasses import dataclass

FULL_S = 200.0
QUICK_S = 18.0
IDLE_ONLY_S = 60.0
STARTING = "starting"  # the load starts; not analysed
STEPS = "steps"


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One phase. `on_s` and `off_s`: how long the load runs and rests in turn; both 0 = it rests
    all the time, `off_s` alone 0 = it runs all the time."""

    name: str
    seconds: float
    on_s: float = 0.0
    off_s: float = 0.0


IDLE = "idle"


def idle_phase(total_s: float, *, with_load: bool) -> Phase:
    """Before any load exists: a tenth of the time; without a load, that is all there is."""
    seconds = 0.1 * total_s if with_load else min(total_s, IDLE_ONLY_S)
    return Phase(name=IDLE, seconds=seconds)


def loaded_phases(total_s: float) -> tuple[Phase, ...]:
    """Return the phases with a load that is ready, nine tenths of the time.

    `idle_with_context`: the load's process exists and rests. `steps`: long turns, which show how
    power answers. `burst`: turns of about a second, as requests come. `steady`: no pause.
    """
    steps_s, burst_s = 0.25 * total_s, 0.25 * total_s
    half_turn_s = steps_s / (2 * max(2, round(steps_s / 8.0)))
    burst_turn_s = min(1.0, burst_s / 4.0)
    return (
        Phase(name="idle_with_context", seconds=0.1 * total_s),
        Phase(name=STEPS, seconds=steps_s, on_s=half_turn_s, off_s=half_turn_s),
        Phase(name="burst", seconds=burst_s, on_s=0.4 * burst_turn_s, off_s=0.6 * burst_turn_s),
        Phase(name="steady", seconds=0.3 * total_s, on_s=0.3 * total_s),
    )
