"""Small things on this machine: an HTTP request, a free port, a pause."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request

from policies.core.errors import EngineError

_ASK_TIMEOUT_S = 60.0


def fetch(url: str, body: bytes | None = None, *, method: str | None = None) -> bytes:
    """Return the body of the answer. Raises EngineError for anything but a 2xx."""
    request = urllib.request.Request(  # noqa: S310 - loopback URLs made here
        url, data=body, method=method, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_ASK_TIMEOUT_S) as response:  # noqa: S310
            found: bytes = response.read()
            return found
    except (urllib.error.URLError, OSError) as error:
        raise EngineError(f"{url}: {error}") from error


def free_port() -> int:
    """Return a TCP port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settle(seconds: float) -> None:
    """Let the machine come to rest."""
    time.sleep(seconds)
