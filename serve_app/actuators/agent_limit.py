"""Power limits through the node's power agent: a lease, renewed every tick."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from policies.core.errors import ActuationError
from serve_app.actuators.base import Ask, LimitState, inside, state_of
from serve_app.power_agent.client import SOCKET, AgentClient
from serve_app.power_agent.leases import UnknownLease

PAUSE_S, MAX_PAUSE_S = 2.0, 60.0


class AgentLimits:
    """A `PowerActuator` over the agent's socket. A replica that dies stops renewing: the agent puts
    back what was found after `ttl_s`."""

    name = "agent"

    def __init__(
        self, uuids: Sequence[str], *, holder: str, ttl_s: float = 10.0, path: Path = SOCKET
    ) -> None:
        self._uuids, self._holder, self._ttl_s = tuple(uuids), holder, ttl_s
        self._client = AgentClient(path)
        self._lease: str | None = None
        self._told = Ask()
        self._last = LimitState()
        self._pause_s, self._again_s = PAUSE_S, -math.inf

    def ask(self, ask: Ask) -> LimitState:
        """As `PowerActuator`. After a refusal it waits before it asks for a lease again, each time
        longer; `reason` stays meanwhile."""
        if self._lease is None and time.monotonic() < self._again_s:
            return replace(self._last, asked_watts=ask.watts)
        try:
            self._last = self._released(ask) if ask.nothing else self._held(ask)
        except ActuationError as error:
            if self._lease is None:
                self._again_s = time.monotonic() + self._pause_s
                self._pause_s = min(2.0 * self._pause_s, MAX_PAUSE_S)
            self._last = state_of(
                self._last.gpus, ask, held=self._lease is not None, reason=str(error)
            )
        return self._last

    def close(self) -> None:
        """As `PowerActuator`."""
        with suppress(ActuationError):  # gone, or lapsing
            self._release()
        self._client.close()

    def _held(self, ask: Ask) -> LimitState:
        for _ in range(2):
            if self._lease is None:
                return self._acquired(ask)
            try:
                return self._renewed(self._lease, inside(ask, self._last))
            except UnknownLease:  # lapsed, or another agent began: ask anew
                self._lease = None
        raise ActuationError("the lease lapses faster than it is renewed")

    def _acquired(self, ask: Ask) -> LimitState:
        bounds = state_of(self._mine(), ask, held=False)
        if not bounds.gpus:
            return bounds
        ask = inside(ask, bounds)
        answer = self._client.acquire(
            self._uuids,
            watts=ask.watts,
            clock_mhz=ask.clock_mhz,
            ttl_s=self._ttl_s,
            holder=self._holder,
        )
        self._lease, self._told = str(answer["lease"]), ask
        self._pause_s = PAUSE_S
        return state_of(answer["gpus"], ask, held=True)

    def _renewed(self, lease: str, ask: Ask) -> LimitState:
        if ask == self._told:
            answer = self._client.renew(lease)
        else:
            answer = self._client.renew(lease, watts=ask.watts, clock_mhz=ask.clock_mhz)
            self._told = ask
        return state_of(answer["gpus"], ask, held=True)

    def _released(self, ask: Ask) -> LimitState:
        self._release()
        state = state_of(self._mine(), ask, held=False)
        if state.holder is None or not state.available:
            return state
        return replace(state, reason=f"held by {state.holder}")

    def _release(self) -> None:
        lease, self._lease, self._told = self._lease, None, Ask()
        if lease is not None:
            with suppress(UnknownLease):
                self._client.release(lease)

    def _mine(self) -> list[dict[str, Any]]:
        """The GPUs of this replica, as the agent sees them."""
        found = self._client.status()["gpus"]
        return [gpu for gpu in found if gpu["uuid"] in self._uuids]
