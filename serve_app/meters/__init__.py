"""Energy meters. `EnergyMeter` is the public face; `open_meter` opens one from plain settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from policies.core.errors import ConfigError
from serve_app.meters.base import (
    LOSSY,
    Anomaly,
    Device,
    DeviceKind,
    DeviceReading,
    MeterBackend,
    Reading,
    Source,
)
from serve_app.meters.blocks import Window
from serve_app.meters.estimated import EstimatedBackend, EstimateSettings
from serve_app.meters.meter import DEFAULT_BACKENDS, EnergyMeter
from serve_app.meters.nvml import NvmlBackend, NvmlSettings
from serve_app.meters.opening import BACKENDS, MeterOptions
from serve_app.meters.pyrapl import PyRaplBackend
from serve_app.meters.rapl import RaplBackend, RaplSettings
from serve_app.meters.recording import RecordingBackend, Rotation, record
from serve_app.meters.replay import ReplayBackend
from serve_app.meters.share import ProcessShare, host_share
from serve_app.meters.window import DeviceMeasurement, Measurement, measure

__all__ = [
    "BACKENDS",
    "DEFAULT_BACKENDS",
    "LOSSY",
    "Anomaly",
    "Device",
    "DeviceKind",
    "DeviceMeasurement",
    "DeviceReading",
    "EnergyMeter",
    "EstimateSettings",
    "EstimatedBackend",
    "Measurement",
    "MeterBackend",
    "MeterOptions",
    "NvmlBackend",
    "NvmlSettings",
    "ProcessShare",
    "PyRaplBackend",
    "RaplBackend",
    "RaplSettings",
    "Reading",
    "RecordingBackend",
    "ReplayBackend",
    "Rotation",
    "Source",
    "Window",
    "host_share",
    "measure",
    "open_meter",
    "record",
]


def open_meter(
    backends: Sequence[str | MeterBackend] = DEFAULT_BACKENDS,
    *,
    clock: Callable[[], float] = monotonic,
    **options: Any,
) -> EnergyMeter:
    """Return an EnergyMeter from plain settings.

    `options` are the fields of MeterOptions. Raises ConfigError for an unknown one.
    """
    allowed = MeterOptions.__dataclass_fields__
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ConfigError(f"meter: unknown {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    return EnergyMeter(backends, options=MeterOptions(**options), clock=clock)
