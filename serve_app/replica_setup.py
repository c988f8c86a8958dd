"""What a replica is made of: its meter and books, its power limit, and the names that its facts
carry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from policies.model.fitted import FittedModel
from serve_app.accounting import EnergyAccountant, weigher_for
from serve_app.actuators import zeusd_limit
from serve_app.actuators.agent_limit import AgentLimits
from serve_app.actuators.base import PowerActuator
from serve_app.actuators.no_limit import NoLimits
from serve_app.actuators.nvml_limit import NvmlLimits
from serve_app.actuators.replica_limit import ReplicaLimit
from serve_app.actuators.zeusd_limit import ZeusdLimits
from serve_app.meters import (
    DeviceKind,
    EstimateSettings,
    ProcessShare,
    Source,
    open_meter,
)
from serve_app.meters.powercap import POWERCAP_ROOT
from serve_app.power_agent import client
from serve_app.replica_gpus import AssignedGpus, assigned_gpus
from serve_app.settings import EnergySettings, PowerSettings
from serve_app.simulator.models import default_limits


async def open_accountant(
    energy: EnergySettings, model: FittedModel | None, llm_config: Any
) -> tuple[EnergyAccountant, AssignedGpus]:
    """The meter of this replica and its books; to be called before the engine starts. Its GPUs are
    those that Ray gave it, and are told as well. RAPL counts the host: the replica is charged its
    share by CPU seconds and by the cores that Ray gave it."""
    estimated = energy.meter.estimated
    options = llm_config.deployment_config.get("ray_actor_options") or {}
    gpus = await assigned_gpus(float(options.get("num_gpus") or 0.0))
    meter = open_meter(
        energy.meter.backends,
        powercap_root=energy.meter.powercap_root or POWERCAP_ROOT,
        visible_gpus=gpus.visible,
        gpu_allotted_ratio=gpus.allotted_ratio,
        share=ProcessShare(allotted_cores=_allotted_cores(llm_config)),
        gpu_idle_watts=model.power.idle_watts if model is not None else None,
        estimate=EstimateSettings(
            watts_per_busy_core=estimated.watts_per_busy_core, idle_watts=estimated.idle_watts
        ),
    )
    if gpus.missing is not None:
        meter.unavailable["gpu"] = gpus.missing
    elif gpus.visible and DeviceKind.GPU not in meter.backends():
        meter.unavailable["gpu"] = "no back-end reads the GPUs that Ray gave this replica"
    accountant = EnergyAccountant(meter, weigher_for(model))
    if accountant.windows.sources.get("cpu") == Source.ESTIMATED:
        accountant.set_idle_watts("cpu", estimated.idle_watts)
    if model is not None and "gpu" in accountant.windows.sources:
        accountant.set_idle_watts("gpu", model.power.idle_watts)
    return accountant, gpus


def _allotted_cores(llm_config: Any) -> float:
    """CPUs that Ray's scheduler gave the replica and its engine together."""
    actor = llm_config.deployment_config.get("ray_actor_options") or {}
    bundles = llm_config.get_engine_config().placement_bundles
    return float(actor.get("num_cpus", 1)) + sum(float(b.get("CPU", 0)) for b in bundles)


def labels_of(context: Any, llm_config: Any) -> dict[str, str]:
    """The base labels of every metric and the identity of every row of the request log."""
    return {
        "application": context.app_name,
        "deployment": context.deployment,
        "replica": context.replica_id.unique_id,
        "model": llm_config.model_id,
    }


def open_limit(
    energy: EnergySettings,
    gpus: AssignedGpus,
    uuids: Sequence[str],
    model: FittedModel | None,
    name: str,
) -> ReplicaLimit:
    """The power limit of this replica's GPUs, `uuids`: who sets it, and what may be chosen."""
    power = energy.power
    if power.actuator == "none":
        return ReplicaLimit(NoLimits())
    if gpus.missing is not None:
        return ReplicaLimit(NoLimits(gpus.missing))
    if not uuids:
        return ReplicaLimit(NoLimits("no GPU of this replica is metered"))
    if gpus.allotted_ratio < 1.0:
        return ReplicaLimit(NoLimits("this replica has a part of its GPU: the rest is another's"))
    choices = [
        watts
        for watts in (default_limits(model) if model is not None else ())
        if power.min_watts <= watts <= (power.max_watts or math.inf)
    ]
    clocks = None
    if power.lock_clocks and model is not None and choices:
        clocks = partial(_clock_ratio, model)
    natural = model.power.natural_draw_watts if model is not None else None
    return ReplicaLimit(_actuator(power, uuids, name), choices, clocks, natural)


def _clock_ratio(model: FittedModel, limit_watts: float) -> float:
    """The clock under a limit over the highest: the speed of what is bound by compute."""
    return model.power.speeds(limit_watts).prefill_ratio


def _actuator(power: PowerSettings, uuids: Sequence[str], name: str) -> PowerActuator:
    if power.actuator == "agent":
        path = power.socket or client.SOCKET
        return AgentLimits(uuids, holder=name, ttl_s=power.ttl_s, path=path)
    if power.actuator == "zeusd":
        return ZeusdLimits(uuids, path=power.socket or zeusd_limit.SOCKET)
    return NvmlLimits(uuids, holder=name)
