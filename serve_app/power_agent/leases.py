"""Who holds which GPU, until when. No clock, no file, no GPU: a table that is told the time."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from policies.core.errors import ActuationRefused

MIN_TTL_S, MAX_TTL_S = 1.0, 300.0


class UnknownLease(ActuationRefused):
    """No such lease: never given, released, or lapsed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who asked: the name it gives itself, and what the kernel says of the process."""

    name: str
    pid: int
    uid: int

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid}, user {self.uid})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What a lease asks of each of its GPUs. None: that knob is left as it was found."""

    watts: float | None = None
    clock_mhz: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The GPUs of one holder, which move together. `id`: whoever knows it may renew and release.
    `expires_s`: on the clock that the table is told."""

    id: str
    uuids: tuple[str, ...]
    holder: Holder
    wish: Wish
    ttl_s: float
    expires_s: float


class LeaseTable:
    """At most one lease per GPU."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def leases(self) -> tuple[Lease, ...]:
        return tuple(self._leases.values())

    def of_gpu(self, uuid: str) -> Lease | None:
        """The lease that holds this GPU."""
        return next((one for one in self._leases.values() if uuid in one.uuids), None)

    def check_free(self, uuids: Sequence[str]) -> None:
        """ActuationRefused, with the holder's name, where one of them is held."""
        for uuid in uuids:
            held = self.of_gpu(uuid)
            if held is not None:
                raise ActuationRefused(f"{uuid} is held by {held.holder}; one at a time may")

    def acquire(
        self, now_s: float, uuids: Sequence[str], holder: Holder, wish: Wish, ttl_s: float
    ) -> Lease:
        """A new lease, until `ttl_s` from now. ActuationRefused as `check_free`."""
        self.check_free(uuids)
        lease = Lease(
            id=secrets.token_urlsafe(18),
            uuids=tuple(uuids),
            holder=holder,
            wish=wish,
            ttl_s=ttl_s,
            expires_s=now_s + ttl_s,
        )
        self._leases[lease.id] = lease
        return lease

    def get(self, now_s: float, lease_id: str) -> Lease:
        """The lease, if it has not lapsed. UnknownLease."""
        lease = self._leases.get(lease_id)
        if lease is None or now_s >= lease.expires_s:
            raise UnknownLease("no such lease: released, lapsed, or given by an agent before this")
        return lease

    def renew(self, now_s: float, lease_id: str, wish: Wish | None = None) -> Lease:
        """The lease for another `ttl_s`, with a new wish where there is one. UnknownLease."""
        lease = self.get(now_s, lease_id)
        lease = replace(lease, expires_s=now_s + lease.ttl_s, wish=wish or lease.wish)
        self._leases[lease_id] = lease
        return lease

    def release(self, now_s: float, lease_id: str) -> Lease:
        """Forget the lease. UnknownLease."""
        lease = self.get(now_s, lease_id)
        del self._leases[lease_id]
        return lease

    def lapsed(self, now_s: float) -> tuple[Lease, ...]:
        """Forget and return the leases that were not renewed in time."""
        gone = tuple(one for one in self._leases.values() if now_s >= one.expires_s)
        for one in gone:
            del self._leases[one.id]
        return gone

    def next_expiry_s(self) -> float | None:
        """When the first of them lapses."""
        return min((one.expires_s for one in self._leases.values()), default=None)
