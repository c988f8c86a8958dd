"""The batch cap as a knob: what is asked for, what the engine has in force."""

from __future__ import annotations

from typing import Any

from serve_app.engine.access import CapState, set_max_num_active_seqs


class BatchCap:
    """Owner of one engine's run-time cap. `requested` is what was last asked for, `in_force` what
    the engine last answered; they differ only while an answer is on its way or was refused."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.requested: int | None = None
        self.in_force: CapState | None = None

    async def read(self) -> CapState:
        """Ask the engine. Raises ActuationRefused."""
        self.in_force = await set_max_num_active_seqs(self._engine, None)
        return self.in_force

    async def set(self, cap: int) -> CapState:
        """Set the cap; returns what is in force after it. Raises ActuationRefused."""
        self.requested = cap
        self.in_force = await set_max_num_active_seqs(self._engine, cap)
        return self.in_force
