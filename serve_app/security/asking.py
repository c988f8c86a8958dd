"""How our own commands ask a service that wants keys or speaks TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

from serve_app.settings import api_key


def authorization() -> dict[str, str]:
    """The header with $JOULESERVE_API_KEY; nothing without one."""
    key = api_key()
    return {"Authorization": f"Bearer {key}"} if key else {}


def trusting(certificate: Path | None) -> ssl.SSLContext | None:
    """TLS with whoever holds this very certificate, by whatever name it is reached on this host;
    None: what is usual."""
    if certificate is None:
        return None
    context = ssl.create_default_context(cafile=str(certificate))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be its own issuer
    context.check_hostname = False
    return context
