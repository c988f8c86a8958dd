"""Which GPUs Ray gave this replica.

Ray's LLM server asks for no GPU of its own: the bundles of its placement group hold them, for the
engine's workers, and Ray leaves CUDA_VISIBLE_DEVICES of a process without GPUs as it was. A meter
that went by that variable would count every GPU of the host, once per replica. So a short task runs
in each bundle and says what Ray shows it, before the engine's workers take their place there.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

log = logging.getLogger("ray.serve")

_TIMEOUT_S = 60.0
_SERVERS_BUNDLE = 0  # Serve places the replica's own process in the first bundle


@dataclass(frozen=True, kw_only=True, slots=True)
class AssignedGpus:
    """The GPUs of one replica.

    `visible`: those on this node, in the form of CUDA_VISIBLE_DEVICES; empty = none.
    `allotted_ratio`: the part of each of them that is the replica's (fractional GPUs), 0..1.
    `missing`: why the joules of some of its GPUs cannot be had here; None = none are missing.
    """

    visible: str
    allotted_ratio: float = 1.0
    missing: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """The GPUs that one process or bundle of the replica holds: their ids as Ray numbers them on
    the node, and how much of them."""

    node: str
    ids: tuple[str, ...]
    amount: float


async def assigned_gpus(server_gpus: float) -> AssignedGpus:
    """Return the GPUs of the replica that calls this, an actor; call it before the engine starts.

    `server_gpus`: how many its own process asked for (`ray_actor_options.num_gpus`). Never raises:
    where Ray does not tell, the replica has none and `missing` says so.
    """
    node, ids = _look()
    parts = [_Part(node=node, ids=tuple(ids), amount=server_gpus)]
    try:
        parts += await asyncio.wait_for(_in_bundles(server_gpus), _TIMEOUT_S)
    except Exception as error:
        log.exception("the GPUs of this replica are not metered")
        reason = f"Ray did not tell which GPUs this replica has: {type(error).__name__}: {error}"
        return AssignedGpus(visible="", missing=reason)
    return summed(parts, node)


def summed(parts: list[_Part], node: str) -> AssignedGpus:
    """Return the GPUs of all parts as seen from `node`."""
    here = [part for part in parts if part.node == node and part.ids]
    ids = list(dict.fromkeys(one for part in here for one in part.ids))
    away = sum(len(part.ids) for part in parts if part.node != node)
    return AssignedGpus(
        visible=",".join(ids),
        allotted_ratio=min(1.0, sum(p.amount for p in here) / len(ids)) if ids else 1.0,
        missing=f"{away} of this replica's GPUs on other nodes are not metered" if away else None,
    )


async def _in_bundles(server_gpus: float) -> list[_Part]:
    """Ask every bundle of the placement group that has GPUs beside those of this process."""
    group = get_current_placement_group()
    if group is None:
        return []
    asked = []
    for index, bundle in enumerate(group.bundle_specs):
        own = server_gpus if index == _SERVERS_BUNDLE else 0.0
        amount = float(bundle.get("GPU", 0.0)) - own
        if amount > 0.0:
            asked.append((amount, _look_in(group, index, amount)))
    answers = await asyncio.gather(*(answer for _, answer in asked))
    return [
        _Part(node=node, ids=tuple(ids), amount=amount)
        for (amount, _), (node, ids) in zip(asked, answers, strict=True)
    ]


def _look_in(group: Any, bundle: int, gpus: float) -> Any:
    """A reference to what a task in this bundle sees. It holds no CPU: the replica has them all."""
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
    options = {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": strategy}
    return ray.remote(_look).options(**options).remote()


def _look() -> tuple[str, list[str]]:
    """The node of this process and its GPUs by Ray's ids."""
    context = ray.get_runtime_context()
    return context.get_node_id(), list(context.get_accelerator_ids().get("GPU", []))
