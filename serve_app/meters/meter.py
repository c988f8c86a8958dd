"""EnergyMeter: the public face of all meters. Readings, windows, and what could not be had.

from serve_app.meters import EnergyMeter

meter = EnergyMeter()
meter.begin()
work()
result = meter.end()
print(result.joules, result.source, result.unavailable)
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from policies.core.errors import MeterError, MeterPermission, MeterUnavailable
from serve_app.meters.base import Device, DeviceKind, DeviceReading, MeterBackend, Reading
from serve_app.meters.opening import MeterOptions, spec_of
from serve_app.meters.window import Measurement, measure

DEFAULT_BACKENDS = ("nvml", "rapl", "estimated")


@dataclass(frozen=True, slots=True)
class _Adopted:
    """An open back-end and the kinds of devices that are taken from it."""

    backend: MeterBackend
    kinds: frozenset[DeviceKind]

    def read(self, now_s: float) -> list[DeviceReading]:
        return [r for r in self.backend.read(now_s) if r.device.kind in self.kinds]

    def devices(self) -> list[Device]:
        return [device for device in self.backend.devices() if device.kind in self.kinds]


class Window:
    """One `with meter.window(...)` block.

    `measurement` is set when the block has ended, also by an exception. Windows are independent
    objects: they nest, overlap and cross tasks and threads.
    """

    def __init__(self, meter: EnergyMeter, name: str | None) -> None:
        self.name = name
        self.measurement: Measurement | None = None
        self._meter = meter
        self._begin: Reading | None = None

    def __enter__(self) -> Self:
        self._begin = self._meter.read()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.measurement = self.so_far()

    def so_far(self) -> Measurement:
        """Return the window from its beginning to now; MeterError outside of the block's run."""
        if self._begin is None:
            raise MeterError("the window has not begun")
        return self._meter.measure_since(self._begin, self.name)


class EnergyMeter:
    """Joules of this host's devices, each kind (gpu, cpu, dram) from the first back-end with it.

    `backends`: names (nvml, rapl, estimated, replay) or open MeterBackend objects. What a name
    needs to be opened stands in `options`. A back-end that cannot be opened is listed in
    `unavailable` with its reason and never shows as 0; one whose kinds are all taken already is
    not opened. An unknown name raises ConfigError. `clock`: monotonic seconds. Thread-safe. Close
    it, or use it in `with`: it closes all of its back-ends, handed-in ones as well.
    """

    def __init__(
        self,
        backends: Sequence[str | MeterBackend] = DEFAULT_BACKENDS,
        *,
        options: MeterOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.unavailable: dict[str, str] = {}
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[str | None, Reading] = {}
        self._adopted: list[_Adopted] = []
        self._closed = False
        try:
            for entry in backends:
                self._adopt(entry, options or MeterOptions())
        except BaseException:
            self.close()
            raise

    def _adopt(self, entry: str | MeterBackend, options: MeterOptions) -> None:
        """Open one back-end and take from it the kinds that nobody before it has."""
        taken = {kind for adopted in self._adopted for kind in adopted.kinds}
        if isinstance(entry, str):
            spec = spec_of(entry)
            if spec.kinds is not None and spec.kinds <= taken:
                return
            try:
                backend = spec.open(options, self._clock)
            except (MeterUnavailable, MeterPermission) as error:
                self.unavailable[entry] = str(error)
                return
        else:
            backend = entry
        kinds = frozenset(device.kind for device in backend.devices()) - taken
        if kinds:
            self._adopted.append(_Adopted(backend, kinds))
        else:
            backend.close()

    # ---- readings

    def devices(self) -> tuple[Device, ...]:
        """All devices in scope."""
        return tuple(device for adopted in self._adopted for device in adopted.devices())

    def read(self) -> Reading:
        """All devices now. Raises MeterError only after `close`."""
        if self._closed:
            raise MeterError("the meter is closed")
        now_s = self._clock()
        return Reading(
            time_s=now_s,
            devices=tuple(r for adopted in self._adopted for r in adopted.read(now_s)),
        )

    def backends(self) -> dict[DeviceKind, str]:
        """Which back-end measures which kind; a kind that nobody measures is absent."""
        return {kind: a.backend.name for a in self._adopted for kind in sorted(a.kinds)}

    def idle_watts(self) -> float | None:
        """Return the sum of the baselines that are known, watts; None if none is."""
        known = [watts for a in self._adopted if (watts := a.backend.idle_watts()) is not None]
        return math.fsum(known) if known else None

    # ---- windows

    def begin(self, name: str | None = None) -> None:
        """Open a window; differently named ones nest and overlap freely.

        Raises MeterError if this one is open already. `window()` has no such limit: use it where
        several tasks or threads measure under one name.
        """
        reading = self.read()
        with self._lock:
            if name in self._windows:
                raise MeterError(f"window {_called(name)} is open already: end it first")
            self._windows[name] = reading

    def end(self, name: str | None = None) -> Measurement:
        """Close a window and return what was used in it. MeterError if it is not open."""
        with self._lock:
            try:
                begin = self._windows.pop(name)
            except KeyError as error:
                opened = ", ".join(map(_called, self._windows)) or "none"
                message = f"window {_called(name)} is not open; open: {opened}"
                raise MeterError(message) from error
        return self.measure_since(begin, name)

    def window(self, name: str | None = None) -> Window:
        """Return a context manager: `with meter.window("x") as w: ...`, then `w.measurement`."""
        return Window(self, name)

    def measure_since(self, begin: Reading, name: str | None = None) -> Measurement:
        """Return what was used since an earlier reading of this meter."""
        return measure(begin, self.read(), name=name, unavailable=self.unavailable)

    # ---- end

    def close(self) -> None:
        """Close all back-ends. May be called twice."""
        self._closed = True
        for adopted in self._adopted:
            adopted.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _called(name: str | None) -> str:
    return "(unnamed)" if name is None else repr(name)
