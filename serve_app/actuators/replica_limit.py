"""The power limit of one replica as a knob: what may be chosen, what is in force, what is asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from policies.core.types import Bounds
from serve_app.actuators.base import Ask, LimitState, PowerActuator
from serve_app.actuators.no_limit import Advisory
from serve_app.actuators.power_limit import LOWEST_MHZ, SAME_WATTS

INERT_RATIO = 0.97  # of the limit: what draws less is not held back by it
INERT_TICKS = 10  # in a row, before the clock is locked instead
CLOCK_STEP_MHZ = 15  # of NVIDIA's clock tables

Clocks = Callable[[float], float]


class ReplicaLimit:
    """Owner of the limit of one replica's GPUs. `state`: as the actuator last told; None before it
    was asked. `choices_watts`: what the policy may choose from, where it can be set. `clocks`: the
    clock under a limit, as a ratio to the highest; with it a limit that does nothing is replaced by
    that clock, which the policy has planned with; None = never. `natural_draw_watts`: what a GPU
    draws at most without a limit, by the profile.
    """

    def __init__(
        self,
        actuator: PowerActuator,
        choices_watts: Sequence[float] = (),
        clocks: Clocks | None = None,
        natural_draw_watts: float | None = None,
    ) -> None:
        self.state: LimitState | None = None
        self.is_inert: bool | None = None
        self._actuator = actuator
        self._advisory = Advisory(actuator)
        self._choices_watts = tuple(sorted(choices_watts))
        self._clocks = clocks
        self._natural_draw_watts = natural_draw_watts
        self._inert_ticks = 0
        self._lock = threading.Lock()
        self._closed = False

    @property
    def name(self) -> str:
        return self._actuator.name

    @property
    def in_force_watts(self) -> float | None:
        """The enforced limit, where one is set that is not the device's own default."""
        state = self.state
        if state is None or state.enforced_watts is None:
            return None
        at_default = state.default_watts is not None and (
            state.enforced_watts >= state.default_watts - SAME_WATTS
        )
        return None if at_default and not state.held else state.enforced_watts

    def over(self, bounds: Bounds) -> Bounds:
        """`bounds` with the limits that can be set now; none where none can, or where the profile
        does not know what one does."""
        state = self.state
        if (
            not self._choices_watts
            or state is None
            or not state.available
            or state.max_watts is None
        ):
            return bounds
        low, high = state.min_watts or 0.0, state.max_watts
        return replace(
            bounds,
            power_limits_watts=tuple(one for one in self._choices_watts if low <= one <= high),
            max_limit_watts=high if state.capped else None,
        )

    async def bring(self, watts: float | None, *, active: bool) -> LimitState:
        """Ask for this limit; None = what was found. Not `active`: nothing is set, and what had
        been set is given back. To be called every tick."""
        state = self.state
        if watts is None and active and state is not None and state.capped:
            watts = state.max_watts
        actuator = self._actuator if active else self._advisory
        ask = Ask(watts=watts, clock_mhz=self._clock_mhz(watts) if active else None)
        self.state = await asyncio.to_thread(self._ask, actuator, ask)
        return self.state

    def _clock_mhz(self, watts: float | None) -> int | None:
        """The clock to lock: that which the limit was to give, where the limit has done nothing for
        some ticks. None = none."""
        state = self.state
        if watts is None or self._clocks is None or state is None or state.max_clock_mhz is None:
            return None
        if self._inert_ticks < INERT_TICKS:
            return None
        wanted = self._clocks(watts) * state.max_clock_mhz
        return max(CLOCK_STEP_MHZ * round(wanted / CLOCK_STEP_MHZ), LOWEST_MHZ)

    def _ask(self, actuator: PowerActuator, ask: Ask) -> LimitState:
        with self._lock:
            return LimitState(reason="this replica ends") if self._closed else actuator.ask(ask)

    def judge(self, draw_watts_per_gpu: float | None) -> bool | None:
        """Whether the GPUs draw so little that the limit does nothing; None = not known, or there
        is no limit of ours. Kept in `is_inert`."""
        state = self.state
        enforced = state.enforced_watts if state is not None and state.held else None
        if enforced is None or draw_watts_per_gpu is None:
            self.is_inert = None
        else:
            self.is_inert = draw_watts_per_gpu < INERT_RATIO * enforced
        capped = state is not None and state.power_capped is not False
        self._inert_ticks = self._inert_ticks + 1 if self.is_inert and not capped else 0
        return self.is_inert

    def row(self) -> dict[str, Any]:
        """For the API: who sets the limit, what was asked for, what holds, and why not."""
        state = self.state or LimitState(reason="not asked yet")
        return {
            "actuator": self.name,
            "available": state.available,
            "reason": state.reason,
            "held": state.held,
            "holder": state.holder,
            "natural_draw_watts": self._natural_draw_watts,
            "asked_watts": state.asked_watts,
            "limit_watts": state.limit_watts,
            "enforced_watts": state.enforced_watts,
            "most_watts": state.max_watts if state.capped else None,
            "drift_watts": state.drift_watts,
            "inert": self.is_inert,
            "clock_mhz": state.clock_mhz,
        }

    def close(self) -> None:
        """Give back what was found; nothing is set any more. From any thread."""
        with self._lock:
            self._closed = True
            self._actuator.close()
