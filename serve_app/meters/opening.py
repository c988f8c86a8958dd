"""Back-ends by name: which there are, what each can measure, and how each is opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from policies.core.errors import ConfigError, MeterUnavailable
from serve_app.meters.base import DeviceKind, MeterBackend
from serve_app.meters.estimated import EstimatedBackend, EstimateSettings
from serve_app.meters.nvml import NvmlBackend, NvmlSettings
from serve_app.meters.powercap import POWERCAP_ROOT
from serve_app.meters.pyrapl import PyRaplBackend
from serve_app.meters.rapl import RaplBackend, RaplSettings
from serve_app.meters.replay import ReplayBackend
from serve_app.meters.share import ProcessShare

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterOptions:
    """What the back-ends are opened with; each option belongs to the back-end named beside it."""

    gpus: tuple[str, ...] | None = None  # nvml: indices or UUIDs; None: what CUDA shows
    visible_gpus: str | None = None  # nvml: in place of CUDA_VISIBLE_DEVICES of this process
    sample_period_s: float = 0.05  # nvml: of integrated power
    gpu_idle_watts: float | None = None  # nvml: measured baseline of one GPU
    gpu_allotted_ratio: float = 1.0  # nvml: the part of each GPU that is ours
    powercap_root: Path = POWERCAP_ROOT  # rapl
    share: ProcessShare | Literal["host"] = "host"  # rapl, pyrapl: the replica's part, or all of it
    host_idle_watts: float | None = None  # rapl, pyrapl: measured baseline of the host
    pid: int | None = None  # estimated: root of the process tree; None: this process
    estimate: EstimateSettings = field(default_factory=EstimateSettings)  # estimated
    replay_path: Path | None = None  # replay


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """`kinds`: what it can measure, None = only the opened back-end knows."""

    open: Callable[[MeterOptions, Clock], MeterBackend]
    kinds: frozenset[DeviceKind] | None


def _open_nvml(options: MeterOptions, clock: Clock) -> MeterBackend:
    settings = NvmlSettings(
        gpus=options.gpus,
        sample_period_s=options.sample_period_s,
        idle_watts_per_gpu=options.gpu_idle_watts,
        allotted_ratio=options.gpu_allotted_ratio,
    )
    environ: Mapping[str, str] = os.environ
    if options.visible_gpus is not None:
        environ = {**environ, "CUDA_VISIBLE_DEVICES": options.visible_gpus}
    return NvmlBackend(settings, environ=environ, clock=clock)


def _rapl_settings(options: MeterOptions) -> RaplSettings:
    return RaplSettings(
        root=options.powercap_root, share=options.share, idle_watts=options.host_idle_watts
    )


def _open_rapl(options: MeterOptions, clock: Clock) -> MeterBackend:
    return RaplBackend(_rapl_settings(options), clock=clock)


def _open_pyrapl(options: MeterOptions, clock: Clock) -> MeterBackend:
    return PyRaplBackend(_rapl_settings(options), clock=clock)


def _open_estimated(options: MeterOptions, clock: Clock) -> MeterBackend:
    return EstimatedBackend(options.estimate, pid=options.pid, clock=clock)


def _open_replay(options: MeterOptions, clock: Clock) -> MeterBackend:
    if options.replay_path is None:
        raise MeterUnavailable("meter.replay_path is not set")
    return ReplayBackend(options.replay_path, clock=clock)


BACKENDS: Mapping[str, BackendSpec] = {
    "nvml": BackendSpec(_open_nvml, frozenset({DeviceKind.GPU})),
    "rapl": BackendSpec(_open_rapl, frozenset({DeviceKind.CPU, DeviceKind.DRAM})),
    "pyrapl": BackendSpec(_open_pyrapl, frozenset({DeviceKind.CPU, DeviceKind.DRAM})),
    "estimated": BackendSpec(_open_estimated, frozenset({DeviceKind.CPU})),
    "replay": BackendSpec(_open_replay, None),
}


def spec_of(name: str) -> BackendSpec:
    """Return the back-end called `name`; raises ConfigError for an unknown one."""
    try:
        return BACKENDS[name]
    except KeyError as error:
        allowed = ", ".join(BACKENDS)
        raise ConfigError(f"meter.backends: {name!r} is unknown; allowed: {allowed}") from error
