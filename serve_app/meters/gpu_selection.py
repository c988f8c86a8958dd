"""Which of the host's GPUs are ours. Pure: reads no environment, calls no driver.

Follows the CUDA rules for CUDA_VISIBLE_DEVICES (CUDA programming guide, "CUDA environment
variables"): a comma-separated list of indices, of `GPU-…` UUIDs (an unambiguous prefix is enough)
or of `MIG-…` instances; what follows the first invalid entry is not visible; empty or `-1` means
none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policies.core.errors import ConfigError, MeterUnavailable


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuIdentity:
    """A GPU as the driver lists it. `index` is NVML's, which is PCI bus order."""

    index: int
    uuid: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MigInstance:
    """An entry that names a slice of a GPU: NVML has no energy counter for it."""

    entry: str


def select_gpus(
    gpus: Sequence[GpuIdentity], wanted: Sequence[str]
) -> tuple[GpuIdentity | MigInstance, ...]:
    """Return the GPUs named in an explicit list (the `gpus` setting): indices or UUIDs.

    Order kept, no duplicates. Raises ConfigError for an entry that names no GPU of this host.
    """
    chosen: list[GpuIdentity | MigInstance] = []
    for entry in wanted:
        found = _find(gpus, entry.strip())
        if found is None:
            known = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus) or "none"
            raise ConfigError(f"meter.gpus: {entry!r} names no GPU of this host; allowed: {known}")
        if found not in chosen:
            chosen.append(found)
    return tuple(chosen)


def visible_gpus(
    gpus: Sequence[GpuIdentity], visible: str | None, *, pci_order: bool
) -> tuple[GpuIdentity | MigInstance, ...]:
    """Return the GPUs that CUDA shows to a process with CUDA_VISIBLE_DEVICES=`visible`; None: all.

    `pci_order`: CUDA_DEVICE_ORDER=PCI_BUS_ID is set. Without it CUDA numbers the fastest GPU first,
    which NVML cannot reproduce; on a host with different models an index is then ambiguous, and
    MeterUnavailable is raised rather than the wrong GPU being metered.
    """
    if visible is None:
        return tuple(gpus)
    chosen: list[GpuIdentity | MigInstance] = []
    by_index = False
    for raw_entry in visible.split(","):
        found = _find(gpus, raw_entry.strip())
        if found is None:
            break
        by_index = by_index or raw_entry.strip().isdecimal()
        if found not in chosen:
            chosen.append(found)
    mixed = len({gpu.name for gpu in gpus}) > 1
    if by_index and mixed and not pci_order and len(chosen) < len(gpus):
        raise MeterUnavailable(
            f"CUDA_VISIBLE_DEVICES={visible!r} uses indices on a host with different GPU models: "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID or name the GPUs by UUID"
        )
    return tuple(chosen)


def _find(gpus: Sequence[GpuIdentity], entry: str) -> GpuIdentity | MigInstance | None:
    """Return the GPU that one entry names; None if it names none or several."""
    if entry.upper().startswith("MIG-"):
        return MigInstance(entry=entry)
    if entry.isdecimal():
        found = [gpu for gpu in gpus if gpu.index == int(entry)]
    elif entry.upper().startswith("GPU-"):
        found = [gpu for gpu in gpus if gpu.uuid.lower().startswith(entry.lower())]
    else:
        found = []
    return found[0] if len(found) == 1 else None
