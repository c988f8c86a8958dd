"""Every failure of the HTTP API as an OpenAI error object with the right status and headers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.exceptions import HTTPException

from serve_app.engine.ray_server import FATAL_ENGINE_ERRORS, OpenAIHTTPException

_RETRY_AFTER_S = 2.0
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def error_response(
    status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An OpenAI error object: `{"error": {"message", "type", "param", "code"}}`."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    body = {"error": {"message": message, "type": kind, "param": None, "code": code or status}}
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


async def _http(_: Request, error: Any) -> JSONResponse:
    code = "model_not_found" if "find base model" in str(error.detail) else None
    return error_response(error.status_code, str(error.detail), code, error.headers)


async def _openai(_: Request, error: Any) -> JSONResponse:
    return error_response(error.status_code, error.message)


async def _validation(_: Request, error: Any) -> JSONResponse:
    fault = (error.errors() or [{"msg": "invalid request", "loc": ("body",)}])[0]
    where = ".".join(str(part) for part in fault["loc"] if part != "body") or "body"
    return error_response(400, f"{where}: {fault['msg']}", "invalid_parameter")


async def _overload(_: Request, error: Any) -> JSONResponse:
    retry_s = math.ceil(error.retry_after_s or _RETRY_AFTER_S)
    return error_response(
        error.status_code, f"overloaded: {error}", "overloaded", {"Retry-After": str(retry_s)}
    )


async def _unavailable(_: Request, error: Any) -> JSONResponse:
    message = f"no replica can answer now: {type(error).__name__}"
    headers = {"Retry-After": str(math.ceil(_RETRY_AFTER_S))}
    return error_response(503, message, "unavailable", headers)


def use_openai_errors(app: FastAPI) -> FastAPI:
    """Register the handlers on an application."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OpenAIHTTPException, _openai)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(BackPressureError, _overload)
    app.add_exception_handler(DeploymentUnavailableError, _unavailable)
    for lost in (RayActorError, *FATAL_ENGINE_ERRORS):
        app.add_exception_handler(lost, _unavailable)
    return app
