"""The actuators that set nothing: `none`, and `advisory` around any other."""

from __future__ import annotations

from dataclasses import replace

from serve_app.actuators.base import Ask, LimitState, PowerActuator


class NoLimits:
    """A `PowerActuator` for replicas whose limits nobody is to set; `reason`: why nobody can,
    where the configuration says that somebody shall."""

    def __init__(self, reason: str | None = None) -> None:
        self.name = "none" if reason is None else "unavailable"
        self._reason = reason

    def ask(self, ask: Ask) -> LimitState:
        """As `PowerActuator`: nothing is done."""
        return LimitState(
            reason=self._reason or "energy.power.actuator is none",
            nobodys=self._reason is None,
            asked_watts=ask.watts,
        )

    def close(self) -> None:
        """As `PowerActuator`."""


class Advisory:
    """Another actuator that is told nothing but to let go: its state, and what would be asked."""

    def __init__(self, inner: PowerActuator) -> None:
        self._inner = inner
        self.name = f"advisory:{inner.name}"

    def ask(self, ask: Ask) -> LimitState:
        """As `PowerActuator`: nothing is set, what had been set is given back."""
        return replace(self._inner.ask(Ask()), asked_watts=ask.watts)

    def close(self) -> None:
        """As `PowerActuator`."""
        self._inner.close()
