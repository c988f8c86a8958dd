"""What a replica is made of: its meter and books, and the names that its facts carry."""

from __future__ import annotations

from typing import Any

from policies.model.fitted import FittedModel
from serve_app.accounting import EnergyAccountant, weigher_for
from serve_app.meters import (
    DeviceKind,
    EstimateSettings,
    ProcessShare,
    Source,
    open_meter,
)
from serve_app.meters.powercap import POWERCAP_ROOT
from serve_app.replica_gpus import assigned_gpus
from serve_app.settings import EnergySettings


async def open_accountant(
    energy: EnergySettings, model: FittedModel | None, llm_config: Any
) -> EnergyAccountant:
    """The meter of this replica and its books; to be called before the engine starts. Its GPUs are
    those that Ray gave it. RAPL counts the host: the replica is charged its share by CPU seconds
    and by the cores that Ray gave it."""
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
    return accountant


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
