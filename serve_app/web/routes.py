"""What the application tells over HTTP: metrics, the books, decisions, and the page at `/energy`.

One table for both ways in: methods of Ray's ingress, and plain routes of vLLM's own app in direct
streaming.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from serve_app.api_errors import error_response
from serve_app.security.keys import KEY_IN_SCOPE
from serve_app.web.assets import ASSETS

__all__ = ["ASSETS", "View", "add_routes"]

View = Callable[..., Awaitable[Any]]  # (method of the ledger, its arguments) → its answer

MOST = 512
STATIC = Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_HEADERS = {
    # Nothing from elsewhere; the charts set styles of their elements.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


async def exposition(view: View) -> Response:
    """All replicas' metrics in one scrape."""
    return Response(await view("exposition"), media_type=CONTENT_TYPE_LATEST)


async def energy(view: View) -> Response:
    """The application's books and replicas."""
    return JSONResponse(await view("energy"))


async def page_data(view: View, last: int = 20, since_utc_s: float = 0.0) -> Response:
    """What the page shows; of the hour what is newer than `since_utc_s`."""
    return JSONResponse(await view("page", within(last), since_utc_s))


async def decisions(view: View, last: int = 50) -> Response:
    """The last decisions with alternatives and outcomes, newest first."""
    return JSONResponse(await view("decisions", within(last)))


async def records(view: View, last: int = 50) -> Response:
    """The last decisions with all that they were made from, oldest first, and their profiles."""
    return JSONResponse(await view("records", within(last)))


class Approval(BaseModel):
    """The body of an approval."""

    id: str


async def approve(view: View, approval: Approval, request: Request) -> Response:
    """Let a waiting decision be acted on; 404, or 409 with the reason. Without a gate nobody knows
    who has said yes."""
    answer = await view("approve", approval.id, request.scope.get(KEY_IN_SCOPE))
    if "error" in answer:
        return error_response(answer["status"], answer["error"], "not_approved")
    return JSONResponse(answer)


def within(last: int) -> int:
    """`last` as far as so many are kept."""
    return min(max(last, 0), MOST)


def page() -> Response:
    """The page itself."""
    return _file("page.html")


def asset(name: str) -> Response:
    """A file of the page; 404 for any other."""
    if name not in ASSETS:
        raise HTTPException(404, f"no such file: {name}")
    if name == "charts.js":
        headers = {**_HEADERS, "Cache-Control": "public, max-age=86400"}
        return Response(_charts(), media_type=_TYPES[".js"], headers=headers)
    return _file(name)


def _file(name: str) -> Response:
    path = STATIC / name
    return Response(path.read_bytes(), media_type=_TYPES[path.suffix], headers=_HEADERS)


@lru_cache(maxsize=1)
def _charts() -> bytes:
    """Plotly's own script, from the installed package."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).encode()


def add_routes(app: Any, view: View) -> None:
    """Add all routes to an app that has no ingress of ours in front."""

    @app.get("/jouleserve/metrics")  # type: ignore[untyped-decorator]
    async def _metrics() -> Response:
        return await exposition(view)

    @app.get("/jouleserve/energy")  # type: ignore[untyped-decorator]
    async def _energy() -> Response:
        return await energy(view)

    @app.get("/jouleserve/decisions")  # type: ignore[untyped-decorator]
    async def _records(last: int = 50) -> Response:
        return await records(view, last)

    @app.get("/energy/decisions")  # type: ignore[untyped-decorator]
    async def _decisions(last: int = 50) -> Response:
        return await decisions(view, last)

    @app.post("/jouleserve/approve")  # type: ignore[untyped-decorator]
    async def _approve(approval: Approval, request: Request) -> Response:
        return await approve(view, approval, request)

    @app.get("/energy/data")  # type: ignore[untyped-decorator]
    async def _data(last: int = 20, since_utc_s: float = 0.0) -> Response:
        return await page_data(view, last, since_utc_s)

    @app.get("/energy")  # type: ignore[untyped-decorator]
    async def _page() -> Response:
        return page()

    @app.get("/energy/assets/{name}")  # type: ignore[untyped-decorator]
    async def _asset(name: str) -> Response:
        return asset(name)
