"""The power limit of one replica as a knob: what may be chosen, what is in force, what is asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from policies.core.types import Bounds
from serve_app.actuators.base import Ask, LimitState, PowerActuator
from serve_app.actuators.no_limit import Advisory

INERT_RATIO = 0.97  # of the limit: what draws less is not held back by it


class ReplicaLimit:
    """Owner of the limit of one replica's GPUs. `state`: as the actuator last told; None before it
    was asked. `choices_watts`: what the policy may choose from, where it can be set."""

    def __init__(self, actuator: PowerActuator, choices_watts: Sequence[float] = ()) -> None:
        self.state: LimitState | None = None
        self.is_inert: bool | None = None
        self._actuator = actuator
        self._advisory = Advisory(actuator)
        self._choices_watts = tuple(sorted(choices_watts))
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
            state.enforced_watts >= state.default_watts - 0.5
        )
        return None if at_default and not state.held else state.enforced_watts

    def over(self, bounds: Bounds) -> Bounds:
        """`bounds` with the limits that can be set now; none where none can."""
        state = self.state
        if state is None or not state.available or state.max_watts is None:
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
        self.state = await asyncio.to_thread(self._ask, actuator, Ask(watts=watts))
        return self.state

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
            "asked_watts": state.asked_watts,
            "limit_watts": state.limit_watts,
            "enforced_watts": state.enforced_watts,
            "most_watts": state.max_watts if state.capped else None,
            "drift_watts": state.drift_watts,
            "inert": self.is_inert,
        }

    def close(self) -> None:
        """Give back what was found; nothing is set any more. From any thread."""
        with self._lock:
            self._closed = True
            self._actuator.close()
