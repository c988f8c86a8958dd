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

RETRY_AFTER_S = 2.0
OVER_BUDGET = "over_power_budget"
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def error_response(
    status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An OpenAI error object: `{"error": {"message", "type", "param", "code"}}`."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    body = {"error": {"message": message, "type": kind, "param": None, "code": code or status}}
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


class RetryLater(HTTPException):
    """No answer now, maybe soon: overload, or no replica that could answer."""

    def __init__(self, status: int, message: str, code: str, retry_after_s: float) -> None:
        super().__init__(status, message, {"Retry-After": str(math.ceil(retry_after_s))})
        self.code = code


def retry_later(error: Exception) -> RetryLater | None:
    """What a failed call of a replica means to the client; None for any other error.

    Serve lays plain-text handlers for its own exceptions over an application's, so they have to be
    translated before they reach the application.
    """
    if isinstance(error, BackPressureError):
        after_s = error.retry_after_s or RETRY_AFTER_S
        return RetryLater(error.status_code, f"overloaded: {error.message}", "overloaded", after_s)
    if isinstance(error, (DeploymentUnavailableError, RayActorError, *FATAL_ENGINE_ERRORS)):
        return unavailable(error)
    return None


def unavailable(error: Exception) -> RetryLater:
    """503: whoever should answer is gone and will be replaced."""
    message = f"nobody can answer now: {type(error).__name__}"
    return RetryLater(503, message, "unavailable", RETRY_AFTER_S)


async def _http(_: Request, error: Any) -> JSONResponse:
    code = getattr(error, "code", None)
    if code is None and "find base model" in str(error.detail):
        code = "model_not_found"
    return error_response(error.status_code, str(error.detail), code, error.headers)


def over_budget(message: str) -> JSONResponse:
    """429: the power budget leaves too little for one more request now."""
    headers = {"Retry-After": str(math.ceil(RETRY_AFTER_S))}
    return error_response(429, message, OVER_BUDGET, headers)


async def _openai(_: Request, error: Any) -> JSONResponse:
    if error.type == OVER_BUDGET:
        return over_budget(error.message)
    return error_response(error.status_code, error.message)


async def _validation(_: Request, error: Any) -> JSONResponse:
    fault = (error.errors() or [{"msg": "invalid request", "loc": ("body",)}])[0]
    where = ".".join(str(part) for part in fault["loc"] if part != "body") or "body"
    return error_response(400, f"{where}: {fault['msg']}", "invalid_parameter")


def use_openai_errors(app: FastAPI) -> FastAPI:
    """Register the handlers on an application."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OpenAIHTTPException, _openai)
    app.add_exception_handler(RequestValidationError, _validation)
    return app
