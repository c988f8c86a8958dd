"""What is known of one request after it: times, tokens, error, energy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from policies.core.types import SLO

INTERRUPTED = "interrupted"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseEnergy:
    """The `energy` object of a response. `joules` None = unavailable, for the `reason` given."""

    joules: float | None
    source: str
    method: str | None = None
    idle_joules: float | None = None
    prefill_joules: float | None = None
    decode_joules: float | None = None
    devices: dict[str, float | None] = field(default_factory=dict)
    reason: str | None = None

    @classmethod
    def from_api(cls, content: Any) -> ResponseEnergy | None:
        """Return the object that the server sent; None for anything that is not one."""
        if not isinstance(content, dict):
            return None
        devices = content.get("devices")
        joules = _finite(content.get("joules"))
        source = str(content.get("source") or "unknown")
        return cls(
            joules=None if source == "unavailable" else joules,
            source=source if joules is not None else "unavailable",
            method=content.get("method"),
            idle_joules=_finite(content.get("idle_joules")),
            prefill_joules=_finite(content.get("prefill_joules")),
            decode_joules=_finite(content.get("decode_joules")),
            devices={k: _finite(v) for k, v in devices.items()}
            if isinstance(devices, dict)
            else {},
            reason=content.get("reason"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestRecord:
    """One request. Times in seconds of the client's own monotonic clock (perf_counter).

    `scheduled_s` and `sent_s` count from the start of the run, the others from the sending:
    `ttft_s` to the first chunk with content, `e2e_s` to the end of the response, `tpot_s` =
    (e2e - TTFT) / (output tokens - 1). `itl_s` are the gaps between content chunks; chunks that
    arrive together have gaps of 0. Tokens are the server's `usage`, or, where `usage_missing`, the
    number of chunks. `error` is None for a completed request, else its kind: `http_<status>`,
    `connect`, `disconnect`, `timeout`, `stream_error`, `malformed`, `interrupted`.
    """

    index: int
    scheduled_s: float
    sent_s: float
    wanted_prompt_tokens: int
    wanted_output_tokens: int
    error: str | None = None
    error_message: str | None = None
    e2e_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    usage_missing: bool = False
    energy: ResponseEnergy | None = None

    @property
    def completed(self) -> bool:
        """Whether the response came whole."""
        return self.error is None

    @property
    def joules(self) -> float | None:
        """What the response says it cost; None = it does not."""
        return None if self.energy is None else self.energy.joules

    def meets(self, slo: SLO) -> bool:
        """Whether it completed within both targets. A response of one token has no TPOT to miss."""
        if not self.completed or self.ttft_s is None or self.ttft_s > slo.ttft_s:
            return False
        return self.tpot_s is None or self.tpot_s <= slo.tpot_s


def _finite(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None
