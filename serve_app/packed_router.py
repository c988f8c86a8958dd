"""Ray's request router that fills replicas in a fixed order, as far as each says that it may.

Runs wherever a handle of the LLM deployment is used: in the ingress, or in Ray's router of direct
streaming. Rests on Ray's `RequestRouter` (public, alpha) and, for everything that packing does not
decide, on Serve's own `PowerOfTwoChoicesRequestRouter` (tests/serve_app/test_packed_router.py).
"""

from __future__ import annotations

import logging
import time
from typing import Any

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

from serve_app.packing import PackedLoads, Told, characters_of

log = logging.getLogger("ray.serve")


class PackedRouter(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]  # Ray ships no types
    """The first replica, in the order of their ranks, that has fewer requests than its `pack_seqs`
    and fewer prompt tokens waiting than its `pack_tokens`; where all have more, the least loaded.

    Power of two choices while no replica gives a hint, and for multiplexed models.
    """

    def initialize_state(self, **_kwargs: Any) -> None:
        """Called by Serve once, before the first request."""
        self._loads = PackedLoads()
        self._read: dict[str, tuple[Any, Told | None]] = {}  # stats as they came, and what they say
        self._failed = False

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replicas in the order of preference, one in each rank. Never raises."""
        order = None
        if pending_request is None or not pending_request.metadata.multiplexed_model_id:
            try:
                order = self._packed(candidate_replicas, pending_request)
            except Exception:
                if not self._failed:
                    log.exception("packing failed; power of two choices instead")
                self._failed = True
        if order is None:
            return await super().choose_replicas(candidate_replicas, pending_request)  # type: ignore[no-any-return]
        return order

    def _packed(
        self, replicas: list[RunningReplica], request: PendingRequest | None
    ) -> list[list[RunningReplica]] | None:
        now_s = time.time()
        by_id = {replica.replica_id.unique_id: replica for replica in replicas}
        self._read = {name: self._told(name, one.routing_stats) for name, one in by_id.items()}
        self._loads.hear(now_s, {name: told for name, (_, told) in self._read.items()})
        order = self._loads.order(now_s)
        if request is not None and order:
            characters = max((characters_of(one) for one in request.args), default=0.0)
            self._loads.give(now_s, request.metadata.internal_request_id, order[0], characters)
            # All replicas were considered: nothing is gained by asking again at once.
            request.routing_context.should_backoff = True
        return None if order is None else [[by_id[str(name)]] for name in order]

    def _told(self, name: str, stats: Any) -> tuple[Any, Told | None]:
        """The stats with what they say; read once."""
        before = self._read.get(name)
        if before is not None and before[0] is stats:
            return before
        return stats, Told.from_stats(stats)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called by Serve when a request has ended, however."""
        super().on_request_completed(replica_id, internal_request_id)
        self._loads.end(time.time(), internal_request_id, replica_id.unique_id)
