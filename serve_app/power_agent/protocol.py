"""What goes over the socket: one JSON object per line each way, every key known, every number
finite.

    {"op": "status"}
    {"op": "acquire", "gpus": ["GPU-..."], "watts": 400, "ttl_s": 10, "holder": "replica llm#abc"}
    {"op": "renew", "lease": "...", "watts": 350}
    {"op": "release", "lease": "..."}

`watts`, `clock_mhz`: at least one of them in `acquire`; in `renew` none keeps both as they are, and
what is given replaces both. Answers: `{"ok": true, ...}`, or `{"ok": false, "error": CODE,
"message": TEXT}` with CODE one of `bad_request`, `refused`, `unknown_lease`, `unavailable`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.power_agent.leases import MAX_TTL_S, MIN_TTL_S, Wish

MAX_FRAME_BYTES = 4096
MAX_GPUS = 64
MAX_HOLDER_CHARS = 128
_KEYS = {
    "status": frozenset({"op"}),
    "acquire": frozenset({"op", "gpus", "watts", "clock_mhz", "ttl_s", "holder"}),
    "renew": frozenset({"op", "lease", "watts", "clock_mhz"}),
    "release": frozenset({"op", "lease"}),
}


class BadRequest(Exception):
    """A frame that is no request; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A request whose form is right. `wish`: None where none was given."""

    op: str
    uuids: tuple[str, ...] = ()
    wish: Wish | None = None
    ttl_s: float = 0.0
    holder: str = ""
    lease: str = ""


def parse_request(line: bytes) -> Request:
    """The request of one frame. BadRequest."""
    try:
        data = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadRequest("not a JSON object on one line") from None
    if not isinstance(data, dict):
        raise BadRequest("not a JSON object on one line")
    op = data.get("op")
    if not isinstance(op, str) or op not in _KEYS:
        raise BadRequest(f"op: one of {', '.join(_KEYS)}")
    unknown = data.keys() - _KEYS[op]
    if unknown:
        allowed = ", ".join(sorted(_KEYS[op]))
        raise BadRequest(f"unknown key {min(unknown)[:40]!r} (allowed: {allowed})")
    if op == "acquire":
        return _acquire(data)
    if op in {"renew", "release"}:
        wish = _wish(data) if op == "renew" else None
        return Request(op=op, lease=_text(data, "lease", 64), wish=wish)
    return Request(op=op)


def _acquire(data: Mapping[str, Any]) -> Request:
    uuids = data.get("gpus")
    if not isinstance(uuids, list) or not 1 <= len(uuids) <= MAX_GPUS:
        raise BadRequest(f"gpus: a list of 1 to {MAX_GPUS} UUIDs")
    if not all(isinstance(one, str) and len(one) <= 80 for one in uuids):
        raise BadRequest("gpus: UUIDs as nvidia-smi -L shows them")
    if len(set(uuids)) != len(uuids):
        raise BadRequest("gpus: one of them is named twice")
    wish = _wish(data)
    if wish is None:
        raise BadRequest("watts or clock_mhz: one of them is needed")
    ttl_s = _number(data, "ttl_s")
    if ttl_s is None or not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
        raise BadRequest(f"ttl_s: {MIN_TTL_S:g} to {MAX_TTL_S:g} seconds")
    holder = _text(data, "holder", MAX_HOLDER_CHARS)
    if not holder.isprintable():
        raise BadRequest("holder: printable characters")
    return Request(op="acquire", uuids=tuple(uuids), wish=wish, ttl_s=ttl_s, holder=holder)


def _wish(data: Mapping[str, Any]) -> Wish | None:
    watts, clock_mhz = _number(data, "watts"), _number(data, "clock_mhz")
    if watts is None and clock_mhz is None:
        return None
    if clock_mhz is not None and (clock_mhz != int(clock_mhz) or clock_mhz <= 0.0):
        raise BadRequest("clock_mhz: whole megahertz above 0")
    return Wish(watts=watts, clock_mhz=None if clock_mhz is None else int(clock_mhz))


def _number(data: Mapping[str, Any], key: str) -> float | None:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"{key}: a number")
    try:
        number = float(value)
    except OverflowError:
        raise BadRequest(f"{key}: a finite number") from None
    if not math.isfinite(number):
        raise BadRequest(f"{key}: a finite number")
    return number


def _text(data: Mapping[str, Any], key: str, most: int) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        raise BadRequest(f"{key}: a text of 1 to {most} characters")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(name)


def frame(answer: Mapping[str, Any]) -> bytes:
    """One answer as it goes over the socket."""
    return json.dumps(answer, separators=(",", ":")).encode() + b"\n"


def refusal(code: str, message: str) -> dict[str, Any]:
    """The answer to what is not done."""
    return {"ok": False, "error": code, "message": message}
