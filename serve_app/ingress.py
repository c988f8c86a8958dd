"""Ray's OpenAI ingress with two read-only routes and stream errors that a client can read."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.llm.ingress import OpenAiIngress

from serve_app.api_errors import retry_later, unavailable
from serve_app.engine.ray_server import DEFAULT_ENDPOINTS
from serve_app.ledger import ledger_handle
from serve_app.responses import error_event

ENDPOINTS: dict[str, Any] = {
    "metrics": lambda app: app.get("/metrics"),
    "application_metrics": lambda app: app.get("/jouleserve/metrics"),
    "application_energy": lambda app: app.get("/jouleserve/energy"),
    **DEFAULT_ENDPOINTS,
}


class EnergyIngress(OpenAiIngress):  # type: ignore[misc]  # Ray ships no types for it
    """The OpenAI endpoints of Ray, plus `/metrics` and `/jouleserve/energy` for the application."""

    async def metrics(self) -> Response:
        """One scrape URL for all replicas of the application."""
        text = await _from_ledger("exposition")
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def application_metrics(self) -> Response:
        """The same under the name that direct streaming offers too."""
        return await self.metrics()

    async def application_energy(self) -> Response:
        """The application's books and replicas, as JSON."""
        return JSONResponse(await _from_ledger("energy"))

    async def _get_response(self, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Ray's stream. A replica that is lost after the first event ends it with an error event
        instead of a broken connection; before it, the client is told to try again later."""
        started = False
        try:
            async for response in super()._get_response(**kwargs):
                started = started or isinstance(response, list | str)
                yield response
        except Exception as error:
            if not started:
                later = retry_later(error)
                if later is None:
                    raise
                raise later from error
            yield [error_event(f"the replica was lost: {type(error).__name__}")]


async def _from_ledger(what: str) -> Any:
    """The ledger's "energy" or "exposition"; while it restarts, the client is told to wait."""
    try:
        ledger = ledger_handle(serve.get_replica_context().app_name)
        return await getattr(ledger, what).remote()
    except RayActorError as error:
        raise unavailable(error) from error
