"""One GPU of the node as the agent works on it: what was found, what is wanted, what holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from policies.core.errors import ActuationError, ActuationRefused
from serve_app.actuators.limit_record import Found
from serve_app.actuators.power_limit import GpuPowerLimit, put_back_one, same
from serve_app.nvml_library import Nvml

CONTESTED_S, MAX_CONTESTED_S = 60.0, 3600.0  # not written after another did; longer each time
RETRY_S, MAX_RETRY_S = 1.0, 30.0


@dataclass(slots=True)
class NodeGpu:
    """The limit of one GPU; written by `write` and `restore` alone.

    `found`: as it was before the first change; None = nothing of ours is on this GPU.
    `wanted_watts`: what it shall have. `set_watts`: what was last written. `unreadable`: why the
    GPU is out of reach; `unwritable`: why the last write failed; None = it is not, it did not.
    `drift_watts`: what another program has set.
    """

    uuid: str
    name: str = ""
    min_watts: float = 0.0
    max_watts: float = 0.0
    default_watts: float = 0.0
    found: Found | None = None
    wanted_watts: float | None = None
    set_watts: float | None = None
    clock_mhz: int | None = None
    limit_watts: float | None = None
    enforced_watts: float | None = None
    max_clock_mhz: int | None = None
    power_capped: bool | None = None
    unreadable: str | None = None
    unwritable: str | None = None
    drift_watts: float | None = None
    written_s: float = -math.inf
    contested_until_s: float = -math.inf
    contested_for_s: float = CONTESTED_S
    retry_s: float = RETRY_S
    due_s: float = -math.inf
    _gpu: GpuPowerLimit | None = field(default=None, repr=False)

    def open(self, nvml: Nvml) -> GpuPowerLimit:
        """The GPU, opened anew where it was lost. ActuationError."""
        if self._gpu is None:
            gpu = GpuPowerLimit(nvml, self.uuid)
            self.name = gpu.label.removesuffix(f" {self.uuid}")
            self.min_watts, self.max_watts = gpu.min_watts, gpu.max_watts
            self.default_watts, self.max_clock_mhz = gpu.default_watts, gpu.max_clock_mhz()
            self._gpu = gpu
        return self._gpu

    @property
    def reason(self) -> str | None:
        """Why its limit cannot be set; None = it can."""
        return self.unreadable or self.unwritable

    def look(self, nvml: Nvml) -> None:
        """Read back what is set and what is enforced; `unreadable` says why that cannot be."""
        try:
            gpu = self.open(nvml)
            self.limit_watts, self.enforced_watts = gpu.limit_watts(), gpu.enforced_watts()
            self.power_capped = gpu.power_capped()
            if gpu.shared_as_mig():
                raise ActuationRefused(
                    f"{gpu.label}: MIG is on: its instances share one power limit"
                )
        except ActuationError as error:
            self._gpu = None  # opened anew at the next look
            self.limit_watts = self.enforced_watts = None
            self.unreadable = str(error)
            return
        self.unreadable = None

    def drifted(self, now_s: float) -> bool:
        """Whether another program has written the limit since the last look; notes it."""
        now, ours = self.limit_watts, self.set_watts
        if now is None or ours is None:
            return False
        if same(now, ours):
            self.drift_watts = None
            return False
        fresh = self.drift_watts is None or not same(now, self.drift_watts)
        if fresh:
            self.drift_watts = now
            self.contested_until_s = now_s + self.contested_for_s
            self.contested_for_s = min(2.0 * self.contested_for_s, MAX_CONTESTED_S)
        return fresh

    def contested(self, now_s: float) -> bool:
        """Whether another program wrote the limit a short while ago."""
        return now_s < self.contested_until_s

    def write(self, nvml: Nvml, watts: float, now_s: float) -> None:
        """Set and read back. ActuationError."""
        gpu = self.open(nvml)
        gpu.write(watts)
        self.written_s = now_s
        self.set_watts, self.drift_watts = watts, None
        self.unwritable, self.retry_s = None, RETRY_S
        self.limit_watts, self.enforced_watts = gpu.limit_watts(), gpu.enforced_watts()

    def lock_clocks(self, nvml: Nvml, mhz: int | None, now_s: float) -> None:
        """Lock the clocks at most there; None gives them back. ActuationError."""
        gpu = self.open(nvml)
        if mhz is None:
            gpu.unlock_clocks()
        else:
            gpu.lock_clocks(mhz)
        self.clock_mhz, self.written_s = mhz, now_s

    def restore(self, nvml: Nvml) -> str | None:
        """Put back what was found. ActuationError."""
        assert self.found is not None
        said = put_back_one(self.open(nvml), self.found)
        self.found = self.wanted_watts = self.set_watts = self.clock_mhz = None
        self.drift_watts = self.unwritable = None
        self.retry_s, self.due_s = RETRY_S, -math.inf
        self.contested_until_s, self.contested_for_s = -math.inf, CONTESTED_S
        return said

    def put_off(self, now_s: float, error: ActuationError | None = None) -> None:
        """A write failed, of this GPU (`error`) or of one that moves with it: try again later, and
        later each time."""
        if error is not None:
            self._gpu, self.unwritable = None, str(error)
        self.due_s = now_s + self.retry_s
        self.retry_s = min(2.0 * self.retry_s, MAX_RETRY_S)

    def as_dict(self) -> dict[str, Any]:
        """For people and programs; watts."""
        if self.reason is not None:
            state = "unavailable"
        elif self.drift_watts is not None:
            state = "drift"
        else:
            state = "ok"
        return {
            "uuid": self.uuid,
            "name": self.name,
            "state": state,
            "reason": self.reason,
            "min_watts": self.min_watts,
            "max_watts": self.max_watts,
            "default_watts": self.default_watts,
            "found_watts": None if self.found is None else self.found.watts,
            "wanted_watts": self.wanted_watts,
            "set_watts": self.set_watts,
            "limit_watts": self.limit_watts,
            "enforced_watts": self.enforced_watts,
            "drift_watts": self.drift_watts,
            "clock_mhz": self.clock_mhz,
            "max_clock_mhz": self.max_clock_mhz,
            "power_capped": self.power_capped,
        }
