"""Which scope a call needs: the one table of paths.

What is not in the table needs `admin`. So a path that is spelled in an odd way (`//v1/models`,
`/V1/models`) can only need more than the plain one; and vLLM's calls that change the engine
(/sleep, /collective_rpc, ...) are closed without being named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from starlette._utils import get_route_path  # what Starlette's router itself goes by

from serve_app.web.assets import ASSETS


class Scope(StrEnum):
    """What an API key may be good for. None of them implies another."""

    INFERENCE = "inference"
    ENERGY = "energy"
    ADMIN = "admin"


# Each entry holds for the path and all below it; of two that fit, the longer.
SCOPES: Mapping[str, Scope] = {
    "/v1": Scope.INFERENCE,
    "/v1/load_lora_adapter": Scope.ADMIN,
    "/v1/unload_lora_adapter": Scope.ADMIN,
    "/v2": Scope.INFERENCE,
    "/inference/v1": Scope.INFERENCE,
    "/invocations": Scope.INFERENCE,
    "/tokenize": Scope.INFERENCE,
    "/detokenize": Scope.INFERENCE,
    "/classify": Scope.INFERENCE,
    "/embed": Scope.INFERENCE,
    "/generative_scoring": Scope.INFERENCE,
    "/pooling": Scope.INFERENCE,
    "/rerank": Scope.INFERENCE,
    "/score": Scope.INFERENCE,
    "/version": Scope.INFERENCE,
    "/docs": Scope.INFERENCE,
    "/redoc": Scope.INFERENCE,
    "/openapi.json": Scope.INFERENCE,
    "/metrics": Scope.ENERGY,
    "/load": Scope.ENERGY,
    "/energy": Scope.ENERGY,
    "/jouleserve/metrics": Scope.ENERGY,
    "/jouleserve/energy": Scope.ENERGY,
    "/jouleserve/decisions": Scope.ENERGY,
    "/jouleserve/approve": Scope.ADMIN,
}
# Health checks of load balancers, which have no key, and the page, which holds nothing and asks for
# the key that its data need; these paths alone.
PUBLIC = frozenset({"/health", "/ping", "/energy", *(f"/energy/assets/{name}" for name in ASSETS)})
_MOST_SEGMENTS = max(path.count("/") for path in SCOPES)


def scope_of(path: str) -> Scope | None:
    """The scope that a path needs, as the router sees it; None: anybody may call it."""
    if path in PUBLIC:
        return None
    # No more segments than the table has: a path of 30,000 slashes costs what a short one costs.
    segments = path.split("/", _MOST_SEGMENTS + 1)[1 : _MOST_SEGMENTS + 1]
    if path.startswith("/"):
        for count in range(len(segments), 0, -1):
            found = SCOPES.get("/" + "/".join(segments[:count]))
            if found is not None:
                return found
    return Scope.ADMIN


def routed_path(scope: Any) -> str:
    """The path of an ASGI scope below what the application is mounted at."""
    return get_route_path(scope) or "/"
