"""`jouleserve approve ID`: let a decision that waits be acted on."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Annotated, Any

import typer

from policies.core.errors import ConfigError
from serve_app.security.asking import authorization

PATH = "/jouleserve/approve"
_TIMEOUT_S = 10.0


def approve(
    decision: Annotated[str, typer.Argument(metavar="ID", help="As explain and the page show it.")],
    *,
    url: Annotated[str, typer.Option(help="The service.")] = "http://127.0.0.1:8000",
) -> None:
    """Approve a decision that was made in mode approve; it holds until another one is approved.

    Where the service asks for keys: one with scope admin, in JOULESERVE_API_KEY.

    Exit status: 0 approved, 2 not: the reason is told.
    """
    point = _post(url, {"id": decision})["approved"]
    limit = point["power_limit_watts"]
    shown = "the default limit" if limit is None else f"{limit:g} W"
    typer.echo(
        f"approved {decision}: replicas {point['num_replicas']}, at most "
        f"{point['max_num_active_seqs']} requests at a time, {shown}"
    )


def _post(url: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json", **authorization()}
    request = urllib.request.Request(  # noqa: S310
        url.rstrip("/") + PATH, json.dumps(body).encode(), headers
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise ConfigError(f"--url {url}: {_reason(error)}") from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ConfigError(f"--url {url}: {PATH} does not answer: {error}") from None


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"{PATH} answers {error.code} {error.reason}"
