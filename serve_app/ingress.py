"""Ray's OpenAI ingress with two read-only routes and stream errors that a client can read."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request, Response
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.llm.ingress import OpenAiIngress

from serve_app.api_errors import retry_later, unavailable
from serve_app.engine.ray_server import DEFAULT_ENDPOINTS
from serve_app.ledger import ledger_handle
from serve_app.responses import error_event
from serve_app.web import routes

log = logging.getLogger("ray.serve")

_ATTEMPTS = 2  # a request that kills whoever serves it must not go from one to the next

ENDPOINTS: dict[str, Any] = {
    "metrics": lambda app: app.get("/metrics"),
    "application_metrics": lambda app: app.get("/jouleserve/metrics"),
    "application_energy": lambda app: app.get("/jouleserve/energy"),
    "application_records": lambda app: app.get("/jouleserve/decisions"),
    "energy_decisions": lambda app: app.get("/energy/decisions"),
    "application_approve": lambda app: app.post("/jouleserve/approve"),
    "energy_data": lambda app: app.get("/energy/data"),
    "energy_page": lambda app: app.get("/energy"),
    "energy_asset": lambda app: app.get("/energy/assets/{name}"),
    **DEFAULT_ENDPOINTS,
}


class EnergyIngress(OpenAiIngress):  # type: ignore[misc]  # Ray ships no types for it
    """The OpenAI endpoints of Ray, plus what the application tells of itself."""

    async def metrics(self) -> Response:
        """One scrape URL for all replicas of the application."""
        return await routes.exposition(_from_ledger)

    async def application_metrics(self) -> Response:
        """The same under the name that direct streaming offers too."""
        return await self.metrics()

    async def application_energy(self) -> Response:
        """The application's books and replicas, as JSON."""
        return await routes.energy(_from_ledger)

    async def application_records(self, last: int = 50) -> Response:
        """The last decisions, to be replayed."""
        return await routes.records(_from_ledger, last)

    async def energy_decisions(self, last: int = 50) -> Response:
        """The last decisions, to be read."""
        return await routes.decisions(_from_ledger, last)

    async def application_approve(self, approval: routes.Approval, request: Request) -> Response:
        """An operator's yes to a decision that waits."""
        return await routes.approve(_from_ledger, approval, request)

    async def energy_data(self, last: int = 20, since_utc_s: float = 0.0) -> Response:
        """What the page shows."""
        return await routes.page_data(_from_ledger, last, since_utc_s)

    async def energy_page(self) -> Response:
        """The live page."""
        return routes.page()

    async def energy_asset(self, name: str) -> Response:
        """A file of the page."""
        return routes.asset(name)

    async def _get_response(self, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Ray's stream. Where the replica's process or node is lost before the first event, another
        replica is asked; where none is left, the client is told to try again later. After the first
        event the stream ends with an error event instead of a broken connection."""
        for left in reversed(range(_ATTEMPTS)):
            started = False
            try:
                async for response in super()._get_response(**kwargs):
                    started = True
                    yield response
            except Exception as error:
                if started:
                    yield [error_event(f"the replica was lost: {type(error).__name__}")]
                    return
                if left and isinstance(error, RayActorError):
                    log.warning("a replica was lost, asking another: %s", type(error).__name__)
                    continue
                later = retry_later(error)
                if later is None:
                    raise
                raise later from error
            return


async def _from_ledger(what: str, *arguments: Any) -> Any:
    """A view of the ledger; while it restarts, the client is told to wait."""
    try:
        ledger = ledger_handle(serve.get_replica_context().app_name)
        return await getattr(ledger, what).remote(*arguments)
    except RayActorError as error:
        raise unavailable(error) from error
