"""Which of the host's GPUs are ours. Pure: reads no environment, calls no driver.

Follows CUDA's rules for CUDA_VISIBLE_DEVICES (CUDA programming guide, "CUDA environment variables",
and what it does beyond them as PyTorch's `torch.cuda._parse_visible_devices` reproduces it): a
comma-separated list of indices, of `GPU-` UUIDs (an unambiguous prefix is enough) or of `MIG-`
instances, not mixed. What follows the first invalid entry is not visible, a repeated entry makes
the whole list empty, and an empty list or `-1` means none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from policies.core.errors import ConfigError, MeterUnavailable


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuIdentity:
    """A GPU as the driver lists it. `index` is NVML's, which is PCI bus order.

    `name` is None for a GPU that does not answer.
    """

    index: int
    uuid: str
    name: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class MigInstance:
    """An entry that names a slice of a GPU."""

    entry: str
    name: str = "MIG instance"
    reason: str = "a MIG instance has no energy counter of its own"


@dataclass(frozen=True, kw_only=True, slots=True)
class SilentGpu:
    """A UUID that no answering GPU has, on a host where some GPU does not answer."""

    entry: str
    name: str = "unreadable GPU"
    reason: str = "the driver does not list it, and some GPU of this host does not answer"


Selected = GpuIdentity | MigInstance | SilentGpu


_INDEX = re.compile(r"\+?\d+")  # of an entry: CUDA reads the number that it begins with
_UUID, _MIG = "gpu-", "mig-"


def select_gpus(gpus: Sequence[GpuIdentity], wanted: Sequence[str]) -> tuple[Selected, ...]:
    """Return the GPUs named in an explicit list (the `gpus` setting): indices or UUIDs.

    Order kept, no duplicates. Raises ConfigError for an entry that names no GPU of this host.
    """
    chosen: list[Selected] = []
    for entry in wanted:
        exact = _form(entry) or entry.strip().isdecimal()
        found = _find(gpus, entry.strip()) if exact else None
        if found is None:
            known = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus) or "none"
            raise ConfigError(f"meter.gpus: {entry!r} names no GPU of this host; allowed: {known}")
        if found not in chosen:
            chosen.append(found)
    return tuple(chosen)


def visible_gpus(
    gpus: Sequence[GpuIdentity], visible: str | None, *, pci_order: bool
) -> tuple[Selected, ...]:
    """Return the GPUs that CUDA shows to a process with CUDA_VISIBLE_DEVICES=`visible`; None: all.

    `pci_order`: CUDA_DEVICE_ORDER=PCI_BUS_ID is set. Without it CUDA numbers the fastest GPU first,
    which NVML cannot reproduce; on a host with different models an index is then ambiguous, and
    MeterUnavailable is raised rather than the wrong GPU being metered.
    """
    if visible is None:
        return tuple(gpus)
    entries = [entry.strip() for entry in visible.split(",")]
    form = _form(entries[0])
    listed = list(takewhile(lambda entry: _key(entry, form) is not None, entries))
    if len({_key(entry, form) for entry in listed}) < len(listed):
        return ()
    chosen: list[Selected] = []
    for entry in listed:
        found = _find(gpus, entry)
        if found is None:
            break
        if found in chosen:
            return ()
        chosen.append(found)
    models = {gpu.name for gpu in gpus if gpu.name is not None}
    if form == "" and len(models) > 1 and not pci_order and 0 < len(chosen) < len(gpus):
        raise MeterUnavailable(
            f"CUDA_VISIBLE_DEVICES={visible!r} uses indices on a host with different GPU models: "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID or name the GPUs by UUID"
        )
    return tuple(chosen)


def _form(entry: str) -> str:
    """Return which of the three forms an entry has: its prefix, empty for an index."""
    return next((prefix for prefix in (_UUID, _MIG) if entry.lower().startswith(prefix)), "")


def _key(entry: str, form: str) -> str | int | None:
    """Return what makes an entry the same as another; None if it is not one of this form."""
    if _form(entry) != form:
        return None
    if form:
        return entry
    number = _INDEX.match(entry)
    return int(number.group()) if number else None


def _find(gpus: Sequence[GpuIdentity], entry: str) -> Selected | None:
    """Return the GPU that one entry names; None if it names none or several."""
    form = _form(entry)
    if form == _MIG:
        return MigInstance(entry=entry)
    if form == _UUID:
        answering = [gpu for gpu in gpus if gpu.name is not None]
        found = [gpu for gpu in answering if gpu.uuid.lower().startswith(entry.lower())]
    else:
        found = [gpu for gpu in gpus if gpu.index == _key(entry, form)]
    if form == _UUID and not found and any(gpu.name is None for gpu in gpus):
        return SilentGpu(entry=entry)
    return found[0] if len(found) == 1 else None
