"""The request log of one replica, wired: settings in, followed requests and metrics out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from serve_app.engine.access import external_id, response_id
from serve_app.engine.step_link import StepEvent
from serve_app.engine.tap import FinishedRequest
from serve_app.observers.metrics import MetricSet
from serve_app.request_log.call import Call, asgi_call, ray_call
from serve_app.request_log.files import Bounds, LogFile
from serve_app.request_log.open_requests import EnergyOf, Identity, OpenRequests
from serve_app.request_log.tenant import NOBODY, TenantRule
from serve_app.request_log.writer import Counts, RequestLog
from serve_app.settings import EnergySettings, request_log_folder, tenant_secret

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class _Parts:
    rule: TenantRule
    log: RequestLog
    open_requests: OpenRequests


class ReplicaRequests:
    """Follows the requests of one replica into its log. Does nothing where the log is off."""

    def __init__(self, settings: EnergySettings, identity: Identity, energy_of: EnergyOf) -> None:
        self._parts = _open(settings, identity, energy_of) if settings.request_log.enabled else None
        self._published = Counts()

    def arrive(self, request: Any, raw_request_info: Any) -> Call:
        """A request in ingress mode, just arrived; it wants its name before it is followed."""
        if self._parts is None:
            return Call(NOBODY)
        return ray_call(request, raw_request_info, self._parts.rule)

    async def arrive_asgi(self, scope: Any, receive: Any) -> tuple[Call, Any, Any]:
        """A raw request, just arrived; with the scope and `receive` to hand on."""
        if self._parts is None:
            return Call(NOBODY), scope, receive
        return await asgi_call(scope, receive, self._parts.rule)

    def follow(self, call: Call) -> AbstractContextManager[Call]:
        """Follow a call while its answer is made."""
        return nullcontext(call) if self._parts is None else self._parts.open_requests.follow(call)

    def told(self, response: str, energy: dict[str, Any]) -> None:
        """The client is being told the energy of its request."""
        if self._parts is not None:
            self._parts.open_requests.told(response, energy)

    def finished(self, request: FinishedRequest) -> None:
        """The engine has answered one of its requests."""
        if self._parts is not None:
            self._parts.open_requests.finished(request)

    def on_step(self, event: StepEvent) -> None:
        """Hear of engine requests that have left without an answer; other events pass."""
        if self._parts is None or event.kind != "f":
            return
        for request_id in event.finished:
            self._parts.open_requests.aborted(response_id(external_id(request_id)))

    def publish(self, metrics: MetricSet) -> None:
        """Bring the metrics up to date."""
        if self._parts is None:
            return
        counts, before = self._parts.log.counts, self._published
        now = Counts(counts.written, counts.dropped, counts.errors)
        for fate, more in (
            ("written", now.written - before.written),
            ("dropped", now.dropped - before.dropped),
        ):
            metrics.inc("jouleserve_request_log_rows", more, fate=fate)
        metrics.inc("jouleserve_request_log_errors", now.errors - before.errors)
        self._published = now

    def close(self) -> None:
        """Write what is queued and stop."""
        if self._parts is not None:
            self._parts.log.close()


def _open(settings: EnergySettings, identity: Identity, energy_of: EnergyOf) -> _Parts:
    wanted = settings.request_log
    bounds = Bounds(
        max_bytes=wanted.max_bytes,
        max_file_bytes=wanted.max_file_bytes,
        max_age_s=wanted.max_age_days * _DAY_S,
    )
    name = f"{identity.application}.{identity.deployment}.{identity.replica}"
    log = RequestLog(LogFile(request_log_folder(wanted.folder), name, bounds))
    return _Parts(
        TenantRule(wanted.tenant, tenant_secret(), gated=settings.security.names_tenants),
        log,
        OpenRequests(identity, energy_of, log.write),
    )
