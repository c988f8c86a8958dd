"""What a bench run is: where, which load, which prompts, which targets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from policies.core.errors import ConfigError
from policies.core.types import SLO
from policies.sim.arrivals import DEFAULT_DUTY_RATIO, BurstShape

DEFAULT_DURATION_S = 60.0
_BURST_FORM = "BASE:PEAK:PERIOD[:DUTY], for example 1:8:60 or 1:8:60:0.25"


class Endpoint(StrEnum):
    """Which of the two OpenAI endpoints the load goes to."""

    CHAT = "chat"
    COMPLETIONS = "completions"

    @property
    def path(self) -> str:
        """The path below the server's base URL."""
        return "/v1/chat/completions" if self is Endpoint.CHAT else "/v1/completions"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """One bench run.

    The load is `trace` where one is given, else `burst`, else Poisson arrivals at `rate_per_s`.
    `duration_s` None means 60 s, or the whole trace. `prompt_tokens` and `output_tokens` are each
    a number, a uniform range LOW:HIGH, or a CSV file `cdf_pct,tokens`; a trace with lengths of its
    own does not use them. `model` None means the first that the server lists. `timeout_s` bounds
    one request from sending to its last byte; `drain_s` is how long an interrupted run waits for
    the requests that are under way.
    """

    url: str = "http://127.0.0.1:8000"
    model: str | None = None
    endpoint: Endpoint = Endpoint.CHAT
    rate_per_s: float = 1.0
    duration_s: float | None = None
    burst: BurstShape | None = None
    trace: Path | None = None
    time_scale: float = 1.0
    prompt_tokens: str = "128"
    output_tokens: str = "64"
    max_requests: int | None = None
    slo: SLO = field(default_factory=SLO)
    seed: int = 0
    tokenizer: Path | None = None
    timeout_s: float = 300.0
    drain_s: float = 5.0
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"--url {self.url!r}: expected http://HOST:PORT")
        for name, value in (
            ("--duration", self.duration_s),
            ("--timeout", self.timeout_s),
            ("--ttft-ms", self.slo.ttft_s),
            ("--tpot-ms", self.slo.tpot_s),
        ):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name}: {value:g}; expected a number > 0")
        if self.max_requests is not None and self.max_requests < 1:
            raise ConfigError(f"--max-requests: {self.max_requests}; expected 1 or more")
        if self.seed < 0:
            raise ConfigError(f"--seed: {self.seed}; expected 0 or more")
        if self.trace is not None and self.burst is not None:
            raise ConfigError(
                "--trace and --burst: expected one of them, each is a load of its own"
            )

    @property
    def base_url(self) -> str:
        """The URL without a trailing slash and without `/v1`."""
        return self.url.rstrip("/").removesuffix("/v1")


def parse_burst(text: str) -> BurstShape:
    """Return the square wave that `BASE:PEAK:PERIOD[:DUTY]` describes (req/s, req/s, s, share)."""
    try:
        base, peak, period, *duty = (float(part) for part in text.split(":"))
        (duty_ratio,) = duty or [DEFAULT_DUTY_RATIO]
    except ValueError:
        raise ConfigError(f"--burst {text!r}: expected {_BURST_FORM}") from None
    try:
        return BurstShape(
            base_rate_per_s=base, peak_rate_per_s=peak, period_s=period, duty_ratio=duty_ratio
        )
    except ConfigError as error:
        raise ConfigError(f"--burst {text!r}: {error}; the form is {_BURST_FORM}") from error
