"""Fetches a public trace: whole or not at all, checked, with its checksum told."""

from __future__ import annotations

import http.client
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from policies.core.errors import ConfigError, EnergyServeError
from serve_app.models.manifest import sha256_of
from serve_app.traces.catalog import PublicTrace
from serve_app.traces.files import check_head

TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 18

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here, and their expected number where the server says it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Downloaded:
    """A trace that is here. `fetched`: whether now or earlier."""

    path: Path
    size_bytes: int
    sha256: str
    fetched: bool


def download(
    trace: PublicTrace, path: Path, progress: Progress, *, address: str | None = None
) -> Downloaded:
    """Bring the trace to `path`, from `address` where given; a file that is there stays.

    Raises ConfigError for an address that is none and a file that is no trace or has another
    checksum, EnergyServeError where the download fails. Then nothing is left at `path`.
    """
    if path.exists():
        return _checked(trace, path, str(path), fetched=False)
    source = trace.address if address is None else address
    if urlsplit(source).scheme not in {"http", "https"}:
        raise ConfigError(f"--url {source}: allowed: an address that starts with http(s)://")
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            _fetch(source, file, progress, path)
        found = _checked(trace, partial, source, fetched=True)
        shutil.move(partial, path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return Downloaded(
        path=path, size_bytes=found.size_bytes, sha256=found.sha256, fetched=found.fetched
    )


def _fetch(address: str, file: IO[bytes], progress: Progress, path: Path) -> None:
    request = Request(address, headers={"User-Agent": "jouleserve"})  # noqa: S310 - http(s) alone
    try:
        with urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            length = answer.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            here = 0
            while chunk := answer.read(_CHUNK_BYTES):
                file.write(chunk)
                here += len(chunk)
                progress(here, total)
    except HTTPError as error:
        raise EnergyServeError(
            _failed(address, f"answers {error.code} {error.reason}", path)
        ) from None
    except (URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise EnergyServeError(_failed(address, f"is not reached: {reason}", path)) from None
    if total is not None and here != total:
        problem = f"sent {here:,} of {total:,} bytes; run the command again"
        raise EnergyServeError(_failed(address, problem, path))


def _failed(address: str, problem: str, path: Path) -> str:
    return (
        f"{address} {problem}. Behind a proxy, set HTTPS_PROXY. Without internet, bring the file "
        f"by other means to {path}, or generate a load: jouleserve traces list"
    )


def _checked(trace: PublicTrace, path: Path, source: str, *, fetched: bool) -> Downloaded:
    check_head(path, source)
    found = sha256_of(path)
    if trace.sha256 is not None and found != trace.sha256:
        raise ConfigError(
            f"{source}: sha256 {found} instead of {trace.sha256}: not the trace of the catalogue"
        )
    return Downloaded(path=path, size_bytes=path.stat().st_size, sha256=found, fetched=fetched)
