"""One replica's fitted model beside the steps and the joules that the replica itself measures.

The control loop asks once per tick; steps only add to sums. Energy is compared over longer windows
than time: a reading cuts steps in two, and sensors are some tenths of a second late.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from policies.model.drift import Assessment, assess
from policies.model.fitted import FittedModel
from policies.model.online import (
    MIN_STEPS_S,
    Compared,
    Correction,
    CorrectionState,
    correction_of,
    fresh,
    update,
)
from serve_app.engine.step_link import StepEvent
from serve_app.meter_windows import WindowReader
from serve_app.meters import DeviceKind, DeviceReading, Source
from serve_app.observers.step_residual import StepResidual, StepSums
from serve_app.settings import ModelCorrectionSettings

log = logging.getLogger("ray.serve")

MIN_ENERGY_WINDOW_S = 5.0
MIN_BUSY_RATIO = 0.5  # of an energy window: in an idle one the guess of the idle draw decides
MEASURED = frozenset({Source.COUNTER, Source.INTEGRATED})  # an estimate cannot correct a model
_RESUME_TIMEOUT_S = 5.0


class LiveModel:
    """Learns from one replica's steps how far `model` is off, and says with what to decide."""

    def __init__(self, model: FittedModel, settings: ModelCorrectionSettings) -> None:
        self.model = model
        self.enabled = settings.enabled
        self.state = fresh(model)
        self.residual_ratio: float | None = None  # of the last tick's step time, uncorrected
        self._settings = settings.to_correction_settings()
        self._steps = StepResidual(model)
        self._unseen = StepSums()
        self._joules = JouleWindow(model.power.idle_watts)

    def on_step(self, event: StepEvent) -> None:
        """Take one event of the engine's step link."""
        self._steps.on_step(event)

    def under(self, limit_watts: float | None) -> None:
        """From now on steps run under this power limit per GPU; None = the device's default."""
        self._steps.under(limit_watts)

    def tick(self, windows: WindowReader, now_s: float) -> None:
        """Learn from the steps since the last call; `windows` has just read the meter."""
        sums = self._steps.take()
        self.residual_ratio = sums.residual_ratio
        if not self.enabled:
            return
        self._unseen = self._unseen.plus(sums)
        step_time = None
        if self._unseen.modelled_s >= MIN_STEPS_S:
            step_time = Compared(measured=self._unseen.measured_s, modelled=self._unseen.modelled_s)
            self._unseen = StepSums()
        energy = self._joules.close(mark_of(windows), sums)
        self.state = update(self.state, self._settings, now_s, step_time=step_time, energy=energy)

    @property
    def correction(self) -> Correction | None:
        """What to decide with; None where the profile is to be taken as it stands."""
        return correction_of(self.state, self._settings) if self.enabled else None

    def assess(self, now_s: float) -> Assessment | None:
        """The verdict; None while nothing is known."""
        return assess(self.state, self._settings, now_s) if self.enabled else None

    def kept(self) -> dict[str, Any] | None:
        """What the next replica may go on with; None while nothing is known."""
        known = self.enabled and self.state.known
        return self.state.resumed().to_dict() if known else None

    async def resume(self, ask: Callable[[str], Awaitable[Any]]) -> None:
        """Go on with what `ask` has kept for this profile. Never raises: without an answer, or with
        a useless one, the replica starts with the profile as it stands."""
        if not self.enabled:
            return
        try:
            kept = await asyncio.wait_for(ask(self.state.profile), _RESUME_TIMEOUT_S)
            if kept is not None:
                self.state = CorrectionState.from_dict(kept, profile=self.state.profile)
                log.info("the model goes on with what was learned: %s", self.correction)
        except Exception as error:
            log.warning("the model starts uncorrected: %s: %s", type(error).__name__, error)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """The meter at one moment: cumulative joules of what the model speaks of, and sensor faults."""

    time_s: float
    joules: float
    anomalies: int


def mark_of(windows: WindowReader) -> Mark | None:
    """The meter as last read; None where the joules of the replica's work are not measured.

    Where there are GPUs the model's joules are theirs, else those of all devices. All of them must
    be read now, by a sensor; a GPU shared with others shows what those draw as well.
    """
    gpus = [one for one in windows.devices if one.device.kind is DeviceKind.GPU]
    devices = gpus or list(windows.devices)
    unmetered = DeviceKind.GPU.value in windows.unavailable or any(one.caveat for one in gpus)
    if not devices or unmetered or not all(_is_measured(one) for one in devices):
        return None
    return Mark(
        time_s=windows.last_close_s,
        joules=math.fsum(one.joules or 0.0 for one in devices),
        anomalies=sum(one.anomalies for one in devices),
    )


def _is_measured(reading: DeviceReading) -> bool:
    return reading.joules is not None and reading.source in MEASURED


class JouleWindow:
    """Measured and modelled joules of steps over at least 5 s of an engine that mostly worked.

    Measured is what the meter shows less `idle_watts` for the time between steps, as in a fit.
    """

    def __init__(self, idle_watts: float) -> None:
        self._idle_watts = idle_watts
        self._begin: Mark | None = None
        self._steps = StepSums()

    def close(self, mark: Mark | None, sums: StepSums) -> Compared | None:
        """The window up to `mark`, or None while it is open or of no use. `sums`: the steps since
        the last call. A reading that is missing or faulty begins a new window."""
        begin = self._begin
        if begin is None or mark is None or mark.anomalies != begin.anomalies:
            self._restart(mark)
            return None
        self._steps = self._steps.plus(sums)
        duration_s = mark.time_s - begin.time_s
        if duration_s < MIN_ENERGY_WINDOW_S:
            return None
        steps = self._steps
        self._restart(mark)
        if steps.measured_s < MIN_BUSY_RATIO * duration_s:
            return None
        idle_joules = self._idle_watts * max(duration_s - steps.measured_s, 0.0)
        return Compared(
            measured=mark.joules - begin.joules - idle_joules, modelled=steps.modelled_joules
        )

    def _restart(self, mark: Mark | None) -> None:
        self._begin, self._steps = mark, StepSums()
