"""The names by which scripts written for GreenStream's `EnergyMeter` read their results.

meter = EnergyMeter(label="Batch LLM", include_idle=True, ignore_disk=True)
meter.begin()
outputs = llm.generate(prompts)
meter.end()
print(meter.get_total_joules_per_component(), meter.duration, meter.start_time)
"""

from __future__ import annotations

from policies.core.errors import ConfigError, MeterError
from serve_app.meters.base import DeviceKind
from serve_app.meters.window import Measurement


def check_options(*, include_idle: bool, ignore_disk: bool) -> None:
    """Raise ConfigError for what GreenStream's meter does and this one does not."""
    if not include_idle:
        raise ConfigError(
            "EnergyMeter: include_idle=False; allowed: True (meters count idle energy; "
            "`idle_watts()` times the duration is the known part of it)"
        )
    if not ignore_disk:
        raise ConfigError("EnergyMeter: ignore_disk=False; allowed: True (disks are not metered)")


class GreenStreamResults:
    """Results of the window that `end()` closed last. Raises MeterError before the first."""

    last: Measurement | None = None
    last_began_unix_s: float | None = None

    def _closed(self) -> Measurement:
        if self.last is None:
            raise MeterError("no window has ended: call begin() and end() first")
        return self.last

    @property
    def duration(self) -> float:
        """Seconds between begin and end, on the monotonic clock."""
        return self._closed().duration_s

    @property
    def start_time(self) -> float:
        """When it began, seconds since 1970 on the wall clock; for display only."""
        self._closed()
        assert self.last_began_unix_s is not None
        return self.last_began_unix_s

    def get_total_joules_per_component(self) -> dict[str, float | None]:
        """Return joules by kind of device: cpu, dram, gpu; None where it could not be measured."""
        by_kind = self._closed().joules_by_kind
        return {kind.value: by_kind.get(kind) for kind in sorted(DeviceKind)}
