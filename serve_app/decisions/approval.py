"""Approve mode: a decision waits until an operator says yes to it, by its id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from policies.core.errors import EnergyServeError
from policies.core.types import Mode, OperatingPoint
from serve_app.decisions.record import Record, point_of

_KEPT_OWNERS = 2048  # replicas come and go
VALID_S = 900.0  # an older proposal was made for another load


class NotApproved(EnergyServeError):
    """A decision that cannot be approved. `status`: of HTTP, 404 where it is not known."""

    def __init__(self, message: str, status: int = 409) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True, slots=True)
class Approved:
    """What holds for one replica: its own point, and how many replicas its deployment is to have;
    None = nothing was approved."""

    point: OperatingPoint | None = None
    replicas: int | None = None


@dataclass(frozen=True, slots=True)
class _Yes:
    decision: str
    point: OperatingPoint
    by: str | None


class Approvals:
    """The last approved point of each owner, as long as it stays in approve mode."""

    def __init__(self) -> None:
        self._points: dict[tuple[str, str | None], _Yes] = {}

    def seen(self, record: Record) -> None:
        """A decision was made; one in another mode ends what was approved before."""
        if record.settings.mode is not Mode.APPROVE:
            self._points.pop(record.key, None)

    def approve(
        self, record: Record | None, now_utc_s: float, by: str | None = None
    ) -> OperatingPoint:
        """Say yes to a proposal. `by`: whose key it was. Raises NotApproved."""
        if record is None:
            raise NotApproved("no such decision; ids are in /energy/decisions", 404)
        if record.settings.mode is not Mode.APPROVE:
            mode = record.settings.mode.value
            raise NotApproved(f"{record.id} was made in mode {mode}: nothing waits for approval")
        if now_utc_s - record.time_utc_s > VALID_S:
            raise NotApproved(f"{record.id} is older than {VALID_S:.0f} s: approve a newer one")
        point = point_of(record.decision, "proposed")
        if record.replica is None and point.num_replicas < 1:
            raise NotApproved(f"{record.id}: without a replica nobody could approve a start")
        self._points.pop(record.key, None)  # the newest is the last
        self._points[record.key] = _Yes(record.id, point, by)
        while len(self._points) > _KEPT_OWNERS:
            del self._points[next(iter(self._points))]
        return point

    def of(self, deployment: str, replica: str) -> Approved:
        """What holds for a replica."""
        mine = self._points.get((deployment, replica))
        fleet = self._points.get((deployment, None))
        return Approved(
            point=mine.point if mine else None,
            replicas=fleet.point.num_replicas if fleet else None,
        )

    def in_force(self) -> Mapping[str, str | None]:
        """The decisions that are approved, and by whom."""
        return {yes.decision: yes.by for yes in self._points.values()}
