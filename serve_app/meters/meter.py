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
from typing import Any, Self, TypeVar

from policies.core.errors import MeterError, MeterPermission, MeterUnavailable
from serve_app.meters.base import Device, DeviceKind, DeviceReading, MeterBackend, Reading
from serve_app.meters.blocks import Report, Window, measured
from serve_app.meters.greenstream import GreenStreamResults, check_options
from serve_app.meters.opening import BACKENDS, MeterOptions, spec_of
from serve_app.meters.window import Measurement, measure

DEFAULT_BACKENDS = ("nvml", "rapl", "estimated")
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class _Adopted:
    """An open back-end and the kinds of devices that are taken from it."""

    backend: MeterBackend
    kinds: frozenset[DeviceKind]

    def read(self, now_s: float) -> list[DeviceReading]:
        return [r for r in self.backend.read(now_s) if r.device.kind in self.kinds]

    def devices(self) -> list[Device]:
        return [device for device in self.backend.devices() if device.kind in self.kinds]


class EnergyMeter(GreenStreamResults):
    """Joules of this host's devices, each kind (gpu, cpu, dram) from the first back-end with it.

    `backends`: names (nvml, rapl, pyrapl, estimated, replay) or open MeterBackend objects. What a
    name needs to be opened stands in `options`. A back-end that cannot be opened is listed in
    `unavailable` with its reason and never shows as 0; one whose kinds are all taken already is
    not opened. An unknown name raises ConfigError. `clock`: monotonic seconds; the wall clock may
    jump. `label` names the window of `begin()` and `end()` without a name; `include_idle` and
    `ignore_disk` are GreenStream's and may only say what is true here.

    Thread-safe, and safe in asyncio: `window` and `measured` make a window of their own for each
    use, `begin` and `end` share one namespace. Close it, or use it in `with`: it closes all of its
    back-ends, handed-in ones as well.
    """

    def __init__(  # noqa: PLR0913 - the last three are GreenStream's
        self,
        backends: Sequence[str | MeterBackend] = DEFAULT_BACKENDS,
        *,
        options: MeterOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        label: str | None = None,
        include_idle: bool = True,
        ignore_disk: bool = True,
    ) -> None:
        check_options(include_idle=include_idle, ignore_disk=ignore_disk)
        self.label = label
        self.unavailable: dict[str, str] = {}
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[str | None, tuple[Reading, float]] = {}
        self._adopted: list[_Adopted] = []
        self._closed_for_good = False
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
        if self._closed_for_good:
            raise MeterError("the meter is closed")
        now_s = self._clock()
        devices = tuple(r for adopted in self._adopted for r in adopted.read(now_s))
        return Reading(time_s=now_s, devices=devices)

    def backends(self) -> dict[DeviceKind, str]:
        """Which back-end measures which kind; a kind that nobody measures is absent."""
        return {kind: a.backend.name for a in self._adopted for kind in sorted(a.kinds)}

    def missing(self) -> dict[DeviceKind, str]:
        """Return the kinds that nobody measures, each with its reason."""
        have = self.backends()
        return {kind: self._why_not(kind) for kind in DeviceKind if kind not in have}

    def _why_not(self, kind: DeviceKind) -> str:
        able = {name for name, spec in BACKENDS.items() if spec.kinds is None or kind in spec.kinds}
        reasons = [f"{name}: {why}" for name, why in self.unavailable.items() if name in able]
        reasons += [
            f"{adopted.backend.name}: shows no {kind} on this host"
            for adopted in self._adopted
            if adopted.backend.name in able
        ]
        return "; ".join(reasons) or "none of the back-ends in use measures it"

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
        began = (self.read(), time.time())
        with self._lock:
            if name in self._windows:
                raise MeterError(f"window {_called(name)} is open already: end it first")
            self._windows[name] = began

    def end(self, name: str | None = None) -> Measurement:
        """Close a window and return what was used in it. MeterError if it is not open."""
        with self._lock:
            try:
                begin, unix_s = self._windows.pop(name)
            except KeyError as error:
                opened = ", ".join(map(_called, self._windows)) or "none"
                message = f"window {_called(name)} is not open; open: {opened}"
                raise MeterError(message) from error
        result = self.measure_since(begin, self.label if name is None else name)
        self.last, self.last_began_unix_s = result, unix_s
        return result

    def window(self, name: str | None = None) -> Window:
        """Return a context manager: `with meter.window("x") as w: ...`, then `w.measurement`."""
        return Window(self, name)

    def measured(self, report: Report, name: str | None = None) -> Callable[[_F], _F]:
        """Return a decorator that hands what each call used to `report`, also if the call raises.

        For functions, coroutines, generators and asynchronous generators; the window of a
        generator lasts from the first item asked for to its end, its consumer's time included.
        `name`: of the window, the function's where it is None. Values sent into an asynchronous
        generator do not pass the decorator.
        """
        return measured(self, report, name)

    def measure_since(self, begin: Reading, name: str | None = None) -> Measurement:
        """Return what was used since an earlier reading of this meter."""
        return measure(begin, self.read(), name=name, unavailable=self.unavailable)

    # ---- end

    def close(self) -> None:
        """Close all back-ends. May be called twice."""
        self._closed_for_good = True
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
