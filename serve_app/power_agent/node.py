"""The GPUs of a node under the leases of their holders: bounds, budget, writing, putting back.

One thread calls it. Every change is on disk before it is made, so that whatever ends this process,
the next one knows what to put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from policies.core.errors import ActuationError, ActuationRefused, MeterError
from serve_app.actuators.limit_record import Found, LimitRecord, RecordFile
from serve_app.actuators.power_limit import LOWEST_MHZ, SAME_WATTS
from serve_app.nvml_library import Nvml
from serve_app.power_agent.budget import Asked, shares
from serve_app.power_agent.leases import Holder, Lease, LeaseTable, Wish
from serve_app.power_agent.node_gpu import NodeGpu

REOPEN_S = 10.0  # where no GPU answers

Tell = Callable[..., None]  # event, **facts: the audit log


class Unavailable(ActuationError):
    """The limits of these GPUs cannot be set now; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What the operator allows. `floor_watts`, `ceiling_watts`: of every GPU, within what its board
    allows; `min_interval_s`: between two writes to one GPU."""

    floor_watts: float = 0.0
    ceiling_watts: float = float("inf")
    min_interval_s: float = 1.0


class Node:
    """The GPUs with these `uuids`. Putting back what a killed agent left comes first of all."""

    def __init__(
        self, nvml: Nvml, file: RecordFile, uuids: Iterable[str], rules: Rules, tell: Tell
    ) -> None:
        self.budget_watts: float | None = None
        self._nvml, self._file, self._rules, self._tell = nvml, file, rules, tell
        self._gpus = {uuid: NodeGpu(uuid=uuid) for uuid in uuids}
        self._table = LeaseTable()
        self._reopened_s = -math.inf
        self._record: dict[str, Found] = {}
        record = file.read()
        if record is not None:
            self._record = dict(record.gpus)
            for uuid, found in record.gpus.items():
                self._gpus.setdefault(uuid, NodeGpu(uuid=uuid)).found = found
            tell("orphans", gpus=list(record.gpus))
        for gpu in self._gpus.values():
            gpu.look(nvml)

    # ---- what holders ask for

    def acquire(
        self, now_s: float, uuids: Sequence[str], holder: Holder, wish: Wish, ttl_s: float
    ) -> Lease:
        """Lease these GPUs and set them. ActuationRefused: held by another, unknown, out of bounds,
        not permitted; Unavailable: a GPU does not answer. Then nothing is changed."""
        for uuid in uuids:
            if uuid not in self._gpus:
                raise ActuationRefused(
                    f"{uuid[:80]}: no such GPU on this node (there are: {', '.join(self._gpus)})"
                )
        self._table.check_free(uuids)
        gpus = [self._gpus[uuid] for uuid in uuids]
        for gpu in gpus:
            gpu.look(self._nvml)
            if gpu.unreadable is not None:
                raise Unavailable(gpu.unreadable)
        self._check(gpus, wish)
        lease = self._table.acquire(now_s, uuids, holder, wish, ttl_s)
        try:
            self._note_found(gpus)
            self._share_out()
            self._apply(now_s)
            for gpu in gpus:
                if gpu.reason is not None:
                    raise Unavailable(gpu.reason)
        except ActuationError:
            self._table.release(now_s, lease.id)
            self._end(now_s, lease)
            raise
        return lease

    def renew(self, now_s: float, lease_id: str, wish: Wish | None) -> Lease:
        """Keep the lease, and change what it asks for. UnknownLease; ActuationRefused as `acquire`,
        then what it asked for before stays, and the lease is renewed all the same."""
        lease = self._table.renew(now_s, lease_id)
        if wish is not None and wish != lease.wish:
            self._check([self._gpus[uuid] for uuid in lease.uuids], wish)
            lease = self._table.renew(now_s, lease_id, wish)
            self._share_out()
            self._apply(now_s)
        return lease

    def release(self, now_s: float, lease_id: str) -> Lease:
        """Give the GPUs back. UnknownLease."""
        lease = self._table.release(now_s, lease_id)
        self._end(now_s, lease)
        return lease

    def gpus_of(self, lease: Lease) -> list[dict[str, Any]]:
        """How its GPUs are, and what each may be asked for."""
        allowed = self._allowed_watts(lease)
        return [self._facts(self._gpus[uuid], allowed) for uuid in lease.uuids]

    def status(self, now_s: float) -> dict[str, Any]:
        """All of the node; lease ids are nobody's but their holders'."""
        found = []
        for gpu in self._gpus.values():
            lease, facts = self._table.of_gpu(gpu.uuid), self._facts(gpu)
            if lease is not None:
                facts["holder"] = str(lease.holder)
                facts["lapses_in_s"] = round(max(lease.expires_s - now_s, 0.0), 3)
            facts["restoring"] = gpu.found is not None and lease is None
            found.append(facts)
        return {
            "gpus": found,
            "budget_watts": self.budget_watts,
            "limits_sum_watts": self._sum_watts(),
            "over_budget_watts": self._over_watts(),
        }

    def _facts(self, gpu: NodeGpu, allowed_watts: float | None = None) -> dict[str, Any]:
        low, high = self._bounds(gpu)
        allowed = high if allowed_watts is None else min(high, allowed_watts)
        lease = self._table.of_gpu(gpu.uuid)
        return {
            **gpu.as_dict(),
            "min_watts": low,
            "allowed_watts": max(low, allowed),
            "capped": allowed < high,
            "holder": None if lease is None else str(lease.holder),
        }

    def _allowed_watts(self, lease: Lease) -> float | None:
        """What each GPU of the lease would have if it asked for the most; None = the budget sets no
        bound."""
        if self.budget_watts is None:
            return None
        wanted = self._wanted(lease)
        return min((wanted[uuid] for uuid in lease.uuids if uuid in wanted), default=None)

    # ---- what time brings

    def tick(self, now_s: float) -> None:
        """Put back what has lapsed, write what was put off. As often as liked; never raises."""
        for lease in self._table.lapsed(now_s):
            self._tell("lapsed", holder=str(lease.holder), gpus=list(lease.uuids))
            self._end(now_s, lease)
        for gpu in self._gpus.values():
            if gpu.found is not None and self._table.of_gpu(gpu.uuid) is None:
                self._restore(gpu, now_s)
        self._apply(now_s)

    def read_back(self, now_s: float) -> None:
        """Look at every GPU; about once a second. Never raises."""
        for gpu in self._gpus.values():
            before = gpu.reason
            gpu.look(self._nvml)
            if gpu.reason != before:
                self._tell("gpu", gpu=gpu.uuid, reason=gpu.reason)
            if gpu.drifted(now_s):
                self._tell(
                    "drift", gpu=gpu.uuid, set_watts=gpu.set_watts, limit_watts=gpu.drift_watts
                )
        self._share_out()
        if self._gpus and all(gpu.unreadable for gpu in self._gpus.values()):
            self._open_anew(now_s)

    def _open_anew(self, now_s: float) -> None:
        """The driver may have been reloaded: then no handle of before works again."""
        if now_s < self._reopened_s + REOPEN_S:
            return
        self._reopened_s = now_s
        try:
            self._nvml.reopen()
        except MeterError as error:
            self._tell("nvml", reason=str(error))

    def next_due_s(self) -> float | None:
        """When the next lease lapses."""
        return self._table.next_expiry_s()

    def restore_all(self, now_s: float) -> bool:
        """End every lease and put everything back now; whether that was done. Never raises."""
        for lease in self._table.leases:
            self._table.release(now_s, lease.id)
        for gpu in self._gpus.values():
            if gpu.found is not None:
                self._restore(gpu, now_s, at_once=True)
        return all(gpu.found is None for gpu in self._gpus.values())

    # ---- bounds and budget

    def _bounds(self, gpu: NodeGpu) -> tuple[float, float]:
        return (
            max(gpu.min_watts, self._rules.floor_watts),
            min(gpu.max_watts, self._rules.ceiling_watts),
        )

    def _check(self, gpus: Sequence[NodeGpu], wish: Wish) -> None:
        for gpu in gpus:
            top, clock_mhz = gpu.max_clock_mhz or 0, wish.clock_mhz
            if clock_mhz is not None and not LOWEST_MHZ <= clock_mhz <= top:
                raise ActuationRefused(
                    f"{gpu.uuid}: graphics clock {clock_mhz} MHz; allowed here: {LOWEST_MHZ} to "
                    f"{top} MHz"
                )
            if wish.watts is None:
                continue
            low, high = self._bounds(gpu)
            if not low <= wish.watts <= high:
                raise ActuationRefused(
                    f"{gpu.uuid}: power limit {wish.watts:g} W; allowed here: {low:g} to {high:g} W"
                    f" (the board's {gpu.min_watts:g} to {gpu.max_watts:g} and the operator's)"
                )

    def _share_out(self) -> None:
        """Say what each leased GPU shall have, so that the budget holds for the whole node."""
        wanted = self._wanted()
        for lease in self._table.leases:
            for uuid in lease.uuids:
                self._gpus[uuid].wanted_watts = wanted.get(uuid)

    def _wanted(self, greedy: Lease | None = None) -> dict[str, float]:
        """What each leased GPU shall have; `greedy`: as if this lease asked for all it may."""
        asked = {}
        for lease in self._table.leases:
            for uuid in lease.uuids:
                low, high = self._bounds(self._gpus[uuid])
                watts = high if lease is greedy else lease.wish.watts
                if watts is not None:
                    asked[uuid] = Asked(watts=watts, least_watts=low)
        if self.budget_watts is None:
            return {uuid: one.watts for uuid, one in asked.items()}
        others = sum(
            gpu.limit_watts or gpu.max_watts for gpu in self._gpus.values() if gpu.uuid not in asked
        )
        return self._even(shares(asked, max(self.budget_watts - others, 0.0)))

    def _even(self, wanted: dict[str, float]) -> dict[str, float]:
        """The GPUs of one lease move together: each has the lowest of them."""
        for lease in self._table.leases:
            mine = [wanted[uuid] for uuid in lease.uuids if uuid in wanted]
            wanted |= dict.fromkeys((u for u in lease.uuids if u in wanted), min(mine, default=0.0))
        return wanted

    def _sum_watts(self) -> float:
        return sum(gpu.limit_watts or gpu.max_watts for gpu in self._gpus.values())

    def _over_watts(self) -> float:
        if self.budget_watts is None:
            return 0.0
        return max(self._sum_watts() - self.budget_watts, 0.0)

    # ---- writing

    def _note_found(self, gpus: Sequence[NodeGpu]) -> None:
        """On disk before the first change."""
        for gpu in gpus:
            if gpu.found is None:
                assert gpu.limit_watts is not None
                gpu.found = self._record[gpu.uuid] = Found(watts=gpu.limit_watts)
                gpu.set_watts = gpu.limit_watts
        self._write_record()

    def _apply(self, now_s: float) -> None:
        """Write what is wanted, lower limits first, a lease's GPUs together."""
        leases = sorted(self._table.leases, key=self._rise_watts)
        for lease in leases:
            gpus = [self._gpus[uuid] for uuid in lease.uuids]
            if self._held_back(gpus, lease, now_s):
                continue
            try:
                self._write(gpus, lease, now_s)
            except ActuationError as error:
                self._tell("failed", holder=str(lease.holder), reason=str(error))

    def _rise_watts(self, lease: Lease) -> float:
        gpus = [self._gpus[uuid] for uuid in lease.uuids]
        return sum((gpu.wanted_watts or 0.0) - (gpu.set_watts or 0.0) for gpu in gpus)

    def _held_back(self, gpus: Sequence[NodeGpu], lease: Lease, now_s: float) -> bool:
        """Whether nothing is to be written now: all is as wanted, too soon after the last write,
        another program writes too, a GPU is out of reach, or the budget has no room yet."""
        moved = [g for g in gpus if g.wanted_watts not in {None, g.set_watts}]
        clocks = any(g.clock_mhz != lease.wish.clock_mhz for g in gpus)
        if not moved and not clocks:
            return True
        every_s = self._rules.min_interval_s
        soon = any(now_s < max(g.written_s + every_s, g.due_s) for g in gpus)
        if soon or any(g.contested(now_s) or g.unreadable is not None for g in gpus):
            return True
        rise = self._rise_watts(lease)
        room = self.budget_watts is None or (
            self._sum_watts() + rise <= self.budget_watts + SAME_WATTS
        )
        return rise > 0.0 and not room

    def _write(self, gpus: Sequence[NodeGpu], lease: Lease, now_s: float) -> None:
        """All of them, or each as it was. ActuationError."""
        before = [(gpu, gpu.set_watts) for gpu in gpus]
        clock_mhz = lease.wish.clock_mhz
        for gpu in gpus:
            self._note_asked(gpu, clock_mhz)
        self._write_record()
        try:
            for gpu in gpus:
                if gpu.wanted_watts is not None and gpu.wanted_watts != gpu.set_watts:
                    gpu.write(self._nvml, gpu.wanted_watts, now_s)
                if gpu.clock_mhz != clock_mhz:
                    gpu.lock_clocks(self._nvml, clock_mhz, now_s)
        except ActuationError as error:
            for one in gpus:
                one.put_off(now_s, error if one is gpu else None)
            self._back(before, now_s)
            raise
        self._tell(
            "set",
            holder=str(lease.holder),
            gpus=[gpu.uuid for gpu in gpus],
            watts=[gpu.set_watts for gpu in gpus],
            enforced_watts=[gpu.enforced_watts for gpu in gpus],
            clock_mhz=clock_mhz,
        )

    def _back(self, before: Sequence[tuple[NodeGpu, float | None]], now_s: float) -> None:
        for gpu, watts in before:
            if watts is not None and gpu.set_watts != watts:
                try:
                    gpu.write(self._nvml, watts, now_s)
                except ActuationError as error:
                    gpu.put_off(now_s, error)

    def _note_asked(self, gpu: NodeGpu, clock_mhz: int | None) -> None:
        """What the GPU may have from us from now on: the last limit and the next."""
        assert gpu.found is not None
        asked = [w for w in (gpu.set_watts, gpu.wanted_watts) if w is not None]
        found = replace(
            gpu.found,
            asked_watts=tuple(dict.fromkeys(asked)),
            clocks=gpu.found.clocks or clock_mhz is not None,
        )
        gpu.found = self._record[gpu.uuid] = found

    def _write_record(self) -> None:
        self._file.write(LimitRecord(gpus=self._record))

    # ---- putting back

    def _end(self, now_s: float, lease: Lease) -> None:
        for uuid in lease.uuids:
            self._restore(self._gpus[uuid], now_s)
        self._share_out()

    def _restore(self, gpu: NodeGpu, now_s: float, *, at_once: bool = False) -> None:
        """Put one GPU back, unless it was written or tried a moment ago: `tick` does it then."""
        if gpu.found is None:
            return
        early = now_s < max(gpu.due_s, gpu.written_s + self._rules.min_interval_s)
        if early and not at_once:
            return
        try:
            said = gpu.restore(self._nvml)
        except ActuationError as error:
            gpu.put_off(now_s, error)
            self._tell("not put back", gpu=gpu.uuid, reason=str(error))
            return
        gpu.written_s = now_s
        self._record.pop(gpu.uuid, None)
        try:
            if self._record:
                self._write_record()
            else:
                self._file.remove()
        except (ActuationError, OSError) as error:  # the limit is back; the record says too much
            self._tell("record", reason=str(error))
        self._tell("put back", gpu=gpu.uuid, said=said)
